"""Block formats: what the specifications say, in every memory layout, and no number made of a NaN."""

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

from wattbit.numerics import round_mxfp4, round_nvfp4

Array = NDArray[np.float32]

finite_lists = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70)
fast = settings(deadline=None, max_examples=100)


def e2m1(x: Array) -> Array:
    return np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)


def e4m3(x: Array) -> Array:
    return np.clip(x, 0, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def mxfp4_reference(row: Array) -> Array:
    """One row, block by block, as the OCP specification words it."""
    parts = []
    for start in range(0, len(row), 32):
        block = row[start : start + 32]
        amax = np.abs(block).max()
        exponent = max(math.frexp(amax)[1] - 1 - 2, -127) if amax > 0 else -127
        stored = np.float64(2.0**exponent).astype(ml_dtypes.float8_e8m0fnu)
        scale = np.float64(stored)
        parts.append((e2m1((block / scale).astype(np.float32)) * scale).astype(np.float32))
    return np.concatenate(parts)


def nvfp4_reference(row: Array, tensor_scale: np.float32) -> Array:
    """One row, block by block, in float32 arithmetic."""
    parts = []
    for start in range(0, len(row), 16):
        block = row[start : start + 16]
        scale = e4m3(np.abs(block).max() / np.float32(6) / tensor_scale) * tensor_scale
        parts.append(e2m1(block / scale) * scale if scale > 0 else block * np.float32(0))
    return np.concatenate(parts)


def rows_of_all_sizes() -> Array:
    """Rows of 77 values (no multiple of a block) from tiny to huge, with zeros, ties and outliers."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(200, 77)) * np.exp2(rng.integers(-149, 120, (200, 1)))
    mixed = rng.normal(size=(100, 77)) * np.exp2(rng.integers(-40, 40, (100, 77)))
    ties = rng.choice([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, -5, -0.25], size=(100, 77))
    rows = np.concatenate([rows, mixed, ties, np.zeros((1, 77)), np.full((1, 77), 3.4e38)])
    rows[::7, 16:48] = 0
    return rows.astype(np.float32)


def test_mxfp4_agrees_to_the_bit_with_the_specification() -> None:
    rows = rows_of_all_sizes()
    expected = np.stack([mxfp4_reference(row) for row in rows])
    np.testing.assert_array_equal(round_mxfp4(torch.from_numpy(rows)).numpy(), expected)


def test_nvfp4_agrees_to_the_bit_with_its_definition() -> None:
    for row in rows_of_all_sizes():
        scale = np.float32(max(np.abs(row).max() / np.float32(448 * 6), np.finfo(np.float32).tiny))
        x = torch.from_numpy(row)
        np.testing.assert_array_equal(round_nvfp4(x).numpy(), nvfp4_reference(row, scale))
        given_scale = np.float32(scale * np.float32(0.3))
        for argument in (float(given_scale), torch.tensor(given_scale)):
            np.testing.assert_array_equal(round_nvfp4(x, argument).numpy(), nvfp4_reference(row, given_scale))


@pytest.mark.parametrize("rounding", [round_mxfp4, round_nvfp4])
@fast
@given(values=finite_lists)
def test_block_rounding_is_odd_and_off_by_at_most_a_quarter_of_the_largest_magnitude(
    rounding: Callable[[Tensor], Tensor], values: list[float]
) -> None:
    x = torch.tensor(values)
    rounded = rounding(x)
    assert torch.equal(rounding(-x), -rounded)
    assert ((rounded.double() - x).abs() <= x.abs().max().double() / 4 + 1e-37).all()


def test_mxfp4_is_idempotent_and_commutes_with_powers_of_two() -> None:
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    once = round_mxfp4(x)
    assert torch.equal(round_mxfp4(once), once)
    assert torch.equal(round_mxfp4(x * 2.0**40), once * 2.0**40)


@pytest.mark.parametrize("rounding", [round_mxfp4, round_nvfp4])
def test_blocks_of_zeros_stay_zeros(rounding: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(rounding(torch.zeros(2, 64)), torch.zeros(2, 64))
    half = torch.cat([torch.zeros(64), torch.ones(64)])
    assert torch.equal(rounding(half), half)


def test_a_nan_makes_its_block_nan_and_no_other() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    clean = x.clone()
    x[1, 40] = math.nan
    for result, expected, start, stop in (
        (round_mxfp4(x), round_mxfp4(clean), 32, 64),
        (round_nvfp4(x, 1e-3), round_nvfp4(clean, 1e-3), 32, 48),
    ):
        assert result[1, start:stop].isnan().all()
        result[1, start:stop] = expected[1, start:stop]
        assert torch.equal(result, expected)
    assert round_nvfp4(x).isnan().all()  # the tensor's own scale is NaN


def test_infinity_does_not_become_a_small_number_in_a_block() -> None:
    x = torch.ones(64)
    x[3] = -math.inf
    result = round_mxfp4(x)
    assert result[3] == -math.inf
    assert torch.equal(result[32:], x[32:])
    assert round_nvfp4(x).isnan().all()
    assert round_nvfp4(x, 0.5)[3] == -6 * 448 * 0.5


@pytest.mark.parametrize("rounding", [round_mxfp4, round_nvfp4])
@pytest.mark.parametrize("channels", [64, 40])
def test_blocks_follow_the_last_axis_whatever_the_memory_layout(
    rounding: Callable[[Tensor], Tensor], channels: int
) -> None:
    images = torch.randn(3, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    moved = images.movedim(1, -1)
    assert torch.equal(rounding(moved), rounding(moved.contiguous()))
    assert rounding(moved).movedim(-1, 1).is_contiguous() == (channels == 64)
    strided = moved[:, ::2, :, 3:]
    assert torch.equal(rounding(strided), rounding(strided.contiguous()))
    expanded = images[:1, :, :1].expand(3, -1, 2, -1)
    assert torch.equal(rounding(expanded), rounding(expanded.contiguous()))
    assert rounding(images[0, 0, 0]).shape == (4,)
