"""Calibrated activation ranges: close to the best range there is, for every shape of sample."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wattbit.errors import DataError, ModelError, PrecisionError
from wattbit.numerics import ActivationRange, AffineQuantizer, activation_quantizer, fake_quantize

BITS = (2, 3, 4, 6, 8)


def activation_error(x: Tensor, quantizer: AffineQuantizer) -> float:
    return (fake_quantize(x, quantizer) - x).double().square().sum().item()


@pytest.mark.parametrize("bits", BITS)
@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70))
def test_calibration_is_never_worse_than_the_full_range(bits: int, values: list[float]) -> None:
    x = torch.tensor(values)
    quantizer = activation_quantizer(x, bits)
    full = AffineQuantizer.spanning(ActivationRange.of(x), bits)
    floor = (x.abs().max().item() * 1e-5) ** 2 * len(values)
    assert activation_error(x, quantizer) <= activation_error(x, full) * (1 + 1e-5) + floor
    assert quantizer.scale == np.float32(quantizer.scale)


@pytest.mark.parametrize("bits", BITS)
def test_calibration_finds_nearly_the_best_range_of_typical_activations(bits: int) -> None:
    rng = np.random.default_rng(2)
    normal, spiky = rng.normal(size=2000), rng.standard_t(3, 2000)
    samples = [normal, np.maximum(normal, 0), np.maximum(spiky, 0), spiky, normal + 2, -np.abs(spiky)]
    for values in [*samples, normal / (1 + np.exp(-normal))]:  # the last is SiLU: short below, long above 0
        x = torch.from_numpy(values.astype(np.float32))
        span = ActivationRange.of(x)
        found = activation_error(x, activation_quantizer(x, bits))
        low, high = (np.unique(end * np.geomspace(0.008, 1, 24)) for end in (span.low, span.high))
        tried = [AffineQuantizer.spanning(ActivationRange(*ends), bits) for ends in product(low, high)]
        assert found <= min(activation_error(x, quantizer) for quantizer in tried) * 1.01


@pytest.mark.parametrize("bits", BITS)
def test_one_sided_samples_spend_no_code_on_the_other_side(bits: int) -> None:
    x = torch.rand(500, generator=torch.Generator().manual_seed(0))
    assert activation_quantizer(x, bits).zero_point == 0
    assert activation_quantizer(-x, bits).zero_point == (1 << bits) - 1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 3.7, -2.5, 1e-42, -3e38])
def test_constant_samples_are_reproduced(bits: int, value: float) -> None:
    x = torch.full((9,), value)
    quantizer = activation_quantizer(x, bits)
    assert torch.allclose(fake_quantize(x, quantizer), x, rtol=1e-6, atol=1e-37)
    assert fake_quantize(torch.zeros(1), quantizer).item() == 0.0


def test_samples_that_cannot_calibrate_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        activation_quantizer(torch.empty(0), 8)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ModelError, match="must be finite"):
            activation_quantizer(torch.tensor([1.0, bad]), 8)


def test_quantizers_that_make_no_sense_are_refused() -> None:
    for scale in (0.0, -1.0, math.nan, math.inf, 1e-40):
        with pytest.raises(PrecisionError, match="scale"):
            AffineQuantizer(scale, 0, 8)
    for zero_point in (-1, 16):
        with pytest.raises(PrecisionError, match="zero point"):
            AffineQuantizer(1.0, zero_point, 4)


def test_ranges_hold_zero_and_know_their_magnitude() -> None:
    assert ActivationRange.of(torch.tensor([[2.0, 5.0]])) == ActivationRange(0.0, 5.0)
    assert ActivationRange(-7.0, 5.0).magnitude == 7.0
    for low, high in ((1.0, 2.0), (-2.0, -1.0), (-1.0, math.nan), (-math.inf, 1.0)):
        with pytest.raises(ModelError, match="finite and hold 0"):
            ActivationRange(low, high)
