"""JSON files: read back as written, and nothing taken that JSON does not have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.storage.strict_json import dump_json, parse_json

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
@settings(deadline=None, max_examples=50)
def test_json_files_are_read_back_as_written(value: Any) -> None:
    assert parse_json(dump_json(value)) == value
    assert parse_json(dump_json(value).encode()) == value
    assert dump_json(parse_json(dump_json(value))) == dump_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        (b"\xff\xfe", "Expecting value|decode"),
        ("[NaN]", "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' is given twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_json_does_not_have_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("value", [float("nan"), {"a": float("-inf")}])
def test_what_json_does_not_have_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dump_json(value)
