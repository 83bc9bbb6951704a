"""Tokens: each has a scale of its own, and loses at most half a step of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wattbit.errors import PrecisionError
from wattbit.numerics import quantize_tokens

WIDTHS = st.integers(2, 8)


def tokens(seed: int, rows: int, features: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-spread, spread, rows)[:, None]
    return torch.randn(rows, features, generator=generator) * sizes


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 40), st.floats(0, 20), WIDTHS)
@settings(deadline=None, max_examples=200)
def test_no_value_is_off_by_more_than_half_a_step_of_its_token(
    seed: int, rows: int, features: int, spread: float, bits: int
) -> None:
    x = tokens(seed, rows, features, spread)
    found = quantize_tokens(x, bits)
    assert ((found.steps * found.scale - x).abs() <= 0.5001 * found.scale).all()
    assert (found.steps.abs() <= 2 ** (bits - 1) - 1).all()


@given(st.integers(0, 999), st.integers(2, 9), WIDTHS)
@settings(deadline=None, max_examples=50)
def test_a_token_is_rounded_alike_whatever_is_beside_it(seed: int, rows: int, bits: int) -> None:
    x = tokens(seed, rows, 24, 3)
    together, alone = quantize_tokens(x, bits), quantize_tokens(x[:1], bits)
    assert torch.equal(together.codes[:1], alone.codes)
    assert torch.equal(together.scale[:1], alone.scale)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7)])
def test_tokens_lie_along_the_last_axis(shape: tuple[int, ...]) -> None:
    found = quantize_tokens(torch.ones(shape), 8)
    assert found.codes.shape == (math.prod(shape[:-1]), 7)
    assert found.scale.shape == (math.prod(shape[:-1]), 1)


def test_zeros_stay_zeros() -> None:
    found = quantize_tokens(torch.zeros(2, 5), 8)
    assert (found.steps == 0).all()
    assert found.scale.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_the_scale_of_its_token_nan_and_no_other(bad: float) -> None:
    x = torch.ones(4, 5)
    x[1, 3] = bad
    assert quantize_tokens(x, 8).scale.isnan().flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("bits", [1, 9])
def test_widths_that_do_not_fit_are_refused(bits: int) -> None:
    with pytest.raises(PrecisionError, match=f"{bits}-bit"):
        quantize_tokens(torch.ones(1, 4), bits)
