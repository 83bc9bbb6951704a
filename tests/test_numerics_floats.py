"""Float formats: bit for bit what the reference implementations and the specifications say."""

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from wattbit.errors import ModelError, PrecisionError
from wattbit.numerics import (
    FLOAT_FORMATS,
    fp8_activation_scale,
    fp8_weight,
    fp8_weight_scale,
    round_float,
    scale_round_fp8,
)
from wattbit.precision import PRECISIONS

Array = NDArray[np.float32]

SMALL_FORMATS = {
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 256, 448.0),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, 16, 6.0),
}
finite_lists = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70)
moderate_lists = st.lists(st.floats(-(2.0**14), 2.0**14, width=32), min_size=1, max_size=70)
fast = settings(deadline=None, max_examples=100)


def same_bits(result: Tensor, expected: Array) -> bool:
    """Equal to the last bit, signs of zeros included; any NaN equals any NaN."""
    found = result.numpy()
    both_nan = np.isnan(found) & np.isnan(expected)
    equal = found.view(np.uint32) == expected.view(np.uint32)
    return found.shape == expected.shape and bool((both_nan | equal).all())


def hard_values() -> Array:
    """Every exponent and sign, mantissas at and beside the ties of every width, and random bit patterns."""
    ties = [
        (kept << 23 - m) + (1 << 22 - m) + near for m in range(22) for kept in (0, 1) for near in (-1, 0, 1)
    ]
    mantissas = np.unique(np.array([*ties, 0, 1, 0x7FFFFF]) & 0x7FFFFF).astype(np.uint32)
    tops = np.arange(512, dtype=np.uint32) << 23
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    return np.concatenate([(tops[:, None] | mantissas).ravel(), random]).view(np.float32)


def values_of(dtype: type, codes: int) -> Array:
    """All finite values of a small float format, in order, without the negative zero."""
    values = np.arange(codes, dtype=np.uint8).view(dtype).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


def tf32_reference(x: Array) -> Array:
    """Exact in double precision: round the multiple of the last kept bit to the nearest even integer."""
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, -126)
    step = np.ldexp(1.0, exponent - 10)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isfinite(x), np.rint(x / step) * step, x).astype(np.float32)


@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
def test_wide_formats_agree_to_the_bit_with_their_reference_everywhere(name: str) -> None:
    x = hard_values()
    with np.errstate(over="ignore", invalid="ignore"):
        references: dict[str, Callable[[Array], Array]] = {
            "tf32": tf32_reference,
            "bf16": lambda v: v.astype(ml_dtypes.bfloat16).astype(np.float32),
            "fp16": lambda v: v.astype(np.float16).astype(np.float32),
        }
        expected = references[name](x)
    assert same_bits(round_float(torch.from_numpy(x), name), expected)


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_small_formats_agree_to_the_bit_with_ml_dtypes_and_saturate_beyond_their_range(name: str) -> None:
    dtype, _, largest = SMALL_FORMATS[name]
    x = hard_values()
    with np.errstate(invalid="ignore"):
        expected = np.clip(x, -largest, largest).astype(dtype).astype(np.float32)
    expected[np.isnan(x)] = np.nan  # fp4 has no NaN; here it must survive all the same
    assert same_bits(round_float(torch.from_numpy(x), name), expected)


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_small_formats_break_every_tie_to_even_and_round_its_neighbours_apart(name: str) -> None:
    dtype, codes, _ = SMALL_FORMATS[name]
    values = values_of(dtype, codes)
    ties = (values[1:] + values[:-1]) / 2
    below, above = np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)
    assert (round_float(torch.from_numpy(values), name).numpy() == values).all()
    assert (round_float(torch.from_numpy(below), name).numpy() == values[:-1]).all()
    assert (round_float(torch.from_numpy(above), name).numpy() == values[1:]).all()
    assert same_bits(round_float(torch.from_numpy(ties), name), ties.astype(dtype).astype(np.float32))


def test_fp4_knows_exactly_the_eight_magnitudes_of_e2m1() -> None:
    x = torch.linspace(-8, 8, 4001)
    assert sorted(set(round_float(x, "fp4_e2m1").abs().tolist())) == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize("name", FLOAT_FORMATS)
@fast
@given(values=finite_lists)
def test_rounding_is_idempotent_odd_and_monotone(name: str, values: list[float]) -> None:
    x = torch.tensor(values).sort().values
    once = round_float(x, name)
    assert torch.equal(round_float(once, name), once)
    assert torch.equal(round_float(-x, name), -once)
    assert torch.equal(once.sort().values, once)


def test_infinity_overflows_in_wide_formats_and_saturates_in_small_ones_and_nan_stays_nan() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
    for name, largest in {"tf32": math.inf, "bf16": math.inf, "fp16": math.inf, "fp8_e4m3": 448.0}.items():
        assert same_bits(round_float(x, name), np.array([largest, -largest, np.nan, -0.0], np.float32))
    assert round_float(torch.tensor([65519.0, 65520.0]), "fp16").tolist() == [65504.0, math.inf]


def test_fp32_is_the_tensor_itself_and_every_other_format_a_new_one() -> None:
    x = torch.randn(40, 16)
    assert [name for name in FLOAT_FORMATS if round_float(x, name) is x] == ["fp32"]


def test_every_float_precision_of_the_vocabulary_can_be_rounded_and_other_names_are_refused() -> None:
    assert {p.name for p in PRECISIONS.values() if p.family == "float"} < set(FLOAT_FORMATS)
    with pytest.raises(PrecisionError, match=r"'int8'.*fp8_e4m3"):
        round_float(torch.ones(1), "int8")


@pytest.mark.parametrize("name", ["tf32", "fp8_e4m3"])
def test_large_tensors_of_any_memory_layout_round_like_small_ones(name: str) -> None:
    x = torch.randn(3, 401, 260)
    expected = torch.stack([torch.stack([round_float(row, name) for row in plane]) for plane in x])
    assert torch.equal(round_float(x, name), expected)
    assert torch.equal(round_float(x.permute(2, 0, 1), name), expected.permute(2, 0, 1))
    assert torch.equal(round_float(x[:, ::2, 1:], name), expected[:, ::2, 1:])
    assert torch.equal(round_float(x[:1].expand(5, -1, -1), name), expected[:1].expand(5, -1, -1))


def test_fp8_scales_map_the_largest_magnitude_to_448_and_zeros_to_one() -> None:
    weight = torch.tensor([[1.0, -3.5], [0.0, 0.0], [1e-44, 0.0]])
    scale = fp8_weight_scale(weight)
    assert scale.tolist()[:2] == [3.5 / 448, 1.0]
    assert (1 / scale).isfinite().all()
    assert fp8_activation_scale(3.5) == 3.5 / 448
    assert fp8_activation_scale(0.0) == 1.0
    assert torch.equal(fp8_weight(weight)[:2], weight[:2])


@fast
@given(values=moderate_lists, exponent=st.integers(-20, 20))
def test_scaled_fp8_commutes_with_powers_of_two(values: list[float], exponent: int) -> None:
    weight = torch.tensor(values)[None].clamp(min=1e-3)
    factor = 2.0**exponent
    assert torch.equal(fp8_weight(weight * factor), fp8_weight(weight) * factor)


@fast
@given(values=moderate_lists)
def test_scaled_fp8_is_off_by_at_most_one_part_in_16_of_normal_values(values: list[float]) -> None:
    x = torch.tensor(values)
    scale = fp8_activation_scale(x.abs().max().item())
    rounded = scale_round_fp8(x, scale)
    assert torch.equal(rounded, round_float(x / torch.tensor(scale), "fp8_e4m3") * scale)
    normal = x.abs() >= scale * 2.0**-6
    assert ((rounded - x).abs() <= x.abs() * (2.0**-4 + 1e-6))[normal].all()
    per_row = scale_round_fp8(torch.stack([x, x]), torch.tensor([scale, 2 * scale]))
    assert torch.equal(per_row, torch.stack([rounded, scale_round_fp8(x, 2 * scale)]))


def test_non_finite_weights_and_magnitudes_are_refused_with_the_remedy() -> None:
    weight = torch.ones(4, 3, 2, 2)
    weight[2, 1] = math.nan
    with pytest.raises(ModelError, match=r"output channel 2 .*fp8_e4m3 needs finite weights"):
        fp8_weight_scale(weight)
    for magnitude in (math.nan, math.inf, -1.0):
        with pytest.raises(ModelError, match="calibrate on inputs"):
            fp8_activation_scale(magnitude)
