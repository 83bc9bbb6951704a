"""Integer codes: never worse than the plain scale, exact at zero, and honest about NaN."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wattbit.errors import ModelError, PrecisionError
from wattbit.numerics import (
    AffineQuantizer,
    activation_quantizer,
    dequantize_weight,
    fake_quantize,
    integer_weight_scale,
    quantize,
    quantize_weight,
)

BITS = (2, 3, 4, 6, 8)
finite_lists = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70)
moderate_lists = st.lists(st.floats(-(2.0**14), 2.0**14, width=32), min_size=1, max_size=70)
fast = settings(deadline=None, max_examples=40)


def weight_error(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    rounded = dequantize_weight(quantize_weight(weight, scale, bits), scale)
    return (rounded - weight).double().square().sum(1)


@pytest.mark.parametrize("bits", BITS)
@fast
@given(values=finite_lists)
def test_weight_scale_is_never_worse_than_the_largest_magnitude(bits: int, values: list[float]) -> None:
    weight = torch.tensor([values])
    scale, unclipped = integer_weight_scale(weight, bits), weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    floor = (weight.abs().max().double() * 1e-6) ** 2 * len(values)
    if unclipped.item() > torch.finfo(torch.float32).tiny:
        error, allowed = weight_error(weight, scale, bits), weight_error(weight, unclipped, bits)
        assert (error <= allowed * (1 + 1e-5) + floor).all()
    assert scale.isfinite().all()
    assert (scale > 0).all()


@pytest.mark.parametrize("bits", BITS)
@fast
@given(values=moderate_lists)
def test_quantized_weights_are_close_symmetric_and_idempotent(bits: int, values: list[float]) -> None:
    weight = torch.tensor([values, [0.0] * len(values)])
    scale, largest = integer_weight_scale(weight, bits), 2 ** (bits - 1) - 1
    codes = quantize_weight(weight, scale, bits)
    rounded = dequantize_weight(codes, scale)
    inside = weight.abs() <= largest * scale[:, None]
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= largest
    assert ((rounded - weight).abs() <= scale[:, None] * 0.50001)[inside].all()
    assert (rounded[weight == 0] == 0).all()
    assert torch.equal(quantize_weight(rounded, scale, bits), codes)
    assert torch.equal(integer_weight_scale(-weight, bits), scale)
    assert torch.equal(quantize_weight(-weight, scale, bits), -codes)


@pytest.mark.parametrize("bits", BITS)
def test_weight_scale_finds_the_best_clip_of_smooth_spiky_and_outlier_ridden_channels(bits: int) -> None:
    rng = np.random.default_rng(1)
    spiky, outlier = rng.standard_t(2, 1000), rng.normal(size=1000)
    outlier[0] = 30.0
    rows = [rng.normal(size=1000), rng.uniform(-1, 1, 1000), rng.laplace(size=1000), spiky, outlier]
    weight = torch.from_numpy(np.stack(rows).astype(np.float32))
    unclipped = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    errors = [weight_error(weight, unclipped * fraction, bits) for fraction in np.linspace(0.004, 1, 1500)]
    best = torch.stack(errors).amin(0)
    assert (weight_error(weight, integer_weight_scale(weight, bits), bits) <= best * 1.02).all()


def test_a_channel_of_zeros_has_scale_one_and_channels_do_not_influence_each_other() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    scale = integer_weight_scale(weight, 3)
    assert scale.shape == (5,)
    assert scale[3] == 1.0
    assert torch.equal(torch.cat([integer_weight_scale(weight[i : i + 1], 3) for i in range(5)]), scale)
    assert dequantize_weight(quantize_weight(weight, scale, 3), scale).shape == weight.shape


def test_weights_that_are_not_finite_are_refused_with_the_channel_named() -> None:
    weight = torch.ones(4, 3, 2, 2)
    weight[2, 1] = math.nan
    for bad, channel in ((weight, 2), (torch.tensor([[math.inf]]), 0)):
        with pytest.raises(ModelError, match=f"output channel {channel} .*int4 needs finite weights"):
            integer_weight_scale(bad, 4)


def test_widths_outside_2_to_8_bits_are_refused() -> None:
    for bits in (1, 9):
        for call in (
            lambda b: integer_weight_scale(torch.ones(1, 1), b),
            lambda b: activation_quantizer(torch.ones(1), b),
            lambda b: AffineQuantizer(1.0, 0, b),
        ):
            with pytest.raises(PrecisionError, match="choose from 2 to 8 bits"):
                call(bits)


quantizers = st.builds(
    lambda bits, scale, zero: AffineQuantizer(scale, zero % (1 << bits), bits),
    st.integers(2, 8),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(0, 255),
)


@fast
@given(quantizer=quantizers, values=finite_lists)
def test_fake_quantize_equals_dequantized_codes_exactly(
    quantizer: AffineQuantizer, values: list[float]
) -> None:
    x = torch.tensor([*values, 0.0, math.inf, -math.inf, 1e30])
    codes = quantize(x, quantizer)
    result = fake_quantize(x, quantizer)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 1 << quantizer.bits
    assert torch.equal(result, (codes.float() - quantizer.zero_point) * quantizer.scale)
    assert result[len(values)] == 0.0
    assert torch.equal(fake_quantize(result, quantizer), result)


@fast
@given(quantizer=quantizers, steps=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=50))
def test_fake_quantize_agrees_with_torch_on_finite_values(
    quantizer: AffineQuantizer, steps: list[float]
) -> None:
    x = torch.tensor(steps) * quantizer.scale
    expected = torch.fake_quantize_per_tensor_affine(
        x, quantizer.scale, quantizer.zero_point, 0, (1 << quantizer.bits) - 1
    )
    assert torch.equal(fake_quantize(x, quantizer), expected)


def test_activations_round_half_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert fake_quantize(x, AffineQuantizer(1.0, 101, 8)).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, -2.0]
    assert quantize(x, AffineQuantizer(1.0, 101, 8)).tolist() == [101, 103, 103, 101, 99, 99]


def test_nan_stays_nan_and_codes_stay_in_range_whatever_its_payload() -> None:
    patterns = np.array([0x7FC00000, 0xFFC00000, 0x7FC000FF, 0x7F800001, 0xFFFFFFFF], np.uint32)
    x = torch.from_numpy(patterns.view(np.float32))
    for bits in BITS:
        quantizer = AffineQuantizer(0.1, 1, bits)
        assert fake_quantize(x, quantizer).isnan().all()
        assert int(quantize(x, quantizer).max()) < 1 << bits
