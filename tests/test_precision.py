"""The vocabulary of precisions: what each means, and how mistakes are answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattbit.errors import PrecisionError
from wattbit.precision import PRECISIONS, Precision, parse_precisions, precision


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_is_found_by_its_name(name: str) -> None:
    assert precision(name).name == name


def test_the_reference_is_the_widest_precision() -> None:
    assert next(iter(PRECISIONS)) == "fp32"
    assert max(p.weight_bits for p in PRECISIONS.values()) == precision("fp32").weight_bits == 32


def test_weight_only_precisions_end_in_wo_and_keep_wider_activations() -> None:
    for name, found in PRECISIONS.items():
        assert found.weight_only == name.endswith("_wo")
        assert found.weight_only == (found.activation_bits > found.weight_bits)


def test_block_scales_count_as_memory() -> None:
    # OCP Microscaling v1.0: 4 bits and an 8-bit scale for 32 values; NVFP4: for 16 values.
    assert precision("mxfp4").stored_weight_bits == 4.25
    assert precision("nvfp4").stored_activation_bits == 4.5
    assert precision("int8").stored_weight_bits == 8
    assert precision("int4_wo").stored_activation_bits == 16
    assert precision("bf16").scale_bits_per_value == 0.0


def test_a_weight_only_block_format_stores_activations_without_block_scales() -> None:
    weight_only = Precision("toy", "block", 4, 16, "bf16", block_size=32, scale_bits=8)
    assert weight_only.stored_activation_bits == 16.0


def test_a_misspelt_precision_is_answered_with_the_likely_one_and_the_choices() -> None:
    with pytest.raises(PrecisionError) as error:
        precision("int_8")
    assert str(error.value).startswith("unknown precision 'int_8': did you mean 'int8'? choose from fp32, ")


@given(
    st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text()), st.dictionaries(st.text(), st.text()))
)
def test_whatever_is_no_precision_is_refused_in_one_short_line(name: object) -> None:
    if isinstance(name, str) and name in PRECISIONS:
        return
    with pytest.raises(PrecisionError) as error:
        precision(name)  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


def test_precisions_keep_the_order_given() -> None:
    assert [p.name for p in parse_precisions(["int4", "fp32", "int8"])] == ["int4", "fp32", "int8"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no precision given: choose at least one"),
        (["int8", "fp32", "int8"], "precision given twice: int8; name each precision once"),
        (["int8", "int9"], "unknown precision 'int9'"),
        ("int8", "precisions are 'int8', one text; give a list of names: [int8]"),
    ],
)
def test_unusable_lists_of_precisions_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(PrecisionError, match=message.replace("[", r"\[")):
        parse_precisions(names)
