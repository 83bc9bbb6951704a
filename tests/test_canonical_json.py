"""Canonical JSON: RFC 8785's own examples, and agreement with an independent implementation."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.audit.canonical_json import canonical_json

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=15
)


@settings(deadline=None, max_examples=300)
@given(values)
def test_it_writes_what_another_implementation_writes(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@settings(deadline=None, max_examples=200)
@given(values)
def test_reading_and_writing_again_gives_the_same_text(value: Any) -> None:
    text = canonical_json(value)
    # Whole floats are read back as ints, which may then be too large to be exact.
    again = json.loads(text, parse_int=lambda digits: float(digits) if len(digits) > 15 else int(digits))
    assert canonical_json(again) == text


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 2**64 - 1))
def test_every_float_is_written_as_ecmascript_does(bits: int) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    if math.isfinite(value):
        assert canonical_json(value) == rfc8785.dumps(value)
        assert float(canonical_json(value)) == value


@pytest.mark.parametrize(
    ("bits", "text"),
    # RFC 8785, appendix B.
    [
        (0x0000000000000000, "0"),
        (0x8000000000000000, "0"),
        (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"),
        (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"),
        (0xC340000000000000, "-9007199254740992"),
        (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"),
        (0x44B52D02C7E14AF6, "1e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"),
        (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"),
        (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555553, "333333333.3333332"),
        (0xBECBF647612F3696, "-0.0000033333333333333333"),
        (0x43143FF3C1CB0959, "1424953923781206.2"),
    ],
)
def test_the_rfcs_own_numbers(bits: int, text: str) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    assert canonical_json(value).decode() == text


def test_keys_are_sorted_by_utf_16_code_units() -> None:
    # RFC 8785, section 3.2.3: the emoji's surrogates sort before the Hebrew presentation form.
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    text = canonical_json(dict.fromkeys(keys, 0)).decode()
    assert list(json.loads(text)) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_control_characters_are_escaped_in_their_short_form_and_others_left_alone() -> None:
    assert canonical_json('\b\t\n\f\r"\\\x0f/\x7f€').decode() == '"\\b\\t\\n\\f\\r\\"\\\\\\u000f/\x7f€"'


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        2**53,
        -(2**53),
        {1: "a"},
        {"a": {None: 1}},
        b"bytes",
        {1, 2},
        object(),
        np.float32(1.0),
        np.int64(1),
        np.zeros(2),
        "\ud800",
        {"\udfff": 1},
    ],
)
def test_what_json_cannot_hold_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        canonical_json({"payload": [value]})
    assert "\n" not in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        canonical_json(loop)
