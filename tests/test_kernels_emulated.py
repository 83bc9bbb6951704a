"""Emulated kernels are exact for any geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from convolution_cases import (
    GEOMETRIES,
    calibrated,
    convolution,
    convolutions,
    emulate,
    random,
    relative_error,
)
from hypothesis import given, settings
from torch import Tensor, nn

from wattbit.execution.kernels import LayerWeights, emulated, pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.numerics import (
    LEAST_TOKEN_BITS,
    dequantize_weight,
    fake_quantize,
    integer_weight_scale,
    nvfp4_tensor_scale,
    quantize_tokens,
    quantize_weight,
    round_float,
    round_mxfp4,
    round_nvfp4,
)
from wattbit.precision import PRECISIONS, precision


@given(convolutions())
@settings(deadline=None, max_examples=60)
def test_an_unfolded_convolution_is_the_convolution(case: tuple[LayerWeights, Tensor]) -> None:
    layer, x = case
    rows = layer.weight.permute(0, 2, 3, 1).flatten(1)
    unfolded = emulated.pack_unfolded(layer, rows, lambda columns: columns)
    torch.testing.assert_close(unfolded(x), layer.apply(x, layer.weight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("geometry", [key for key in GEOMETRIES if "depthwise" not in key])
def test_blocks_of_channels_give_what_unfolding_gives(name: str, geometry: str) -> None:
    layer, x = convolution(**GEOMETRIES[geometry]), random(2, 64, 9, 9)
    rows = layer.weight.permute(0, 2, 3, 1).flatten(1)
    if name == "mxfp4":
        unfolded = emulated.pack_unfolded(layer, round_mxfp4(rows), round_mxfp4)
    else:
        scale = nvfp4_tensor_scale(x.abs().max())
        unfolded = emulated.pack_unfolded(
            layer, round_nvfp4(rows), lambda columns: round_nvfp4(columns, scale)
        )
    torch.testing.assert_close(emulate(layer, name, x), unfolded(x), atol=1e-4, rtol=1e-4)


def test_blocks_cross_pixels_where_channels_do_not_fill_them() -> None:
    # 4 channels, 3 x 3: 36 values a row, in blocks of 32 and 4.
    layer, x = convolution(4, 3), random(1, 4, 3, 3)
    column = x.permute(0, 2, 3, 1).flatten()
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    assert layer.bias is not None
    expected = round_mxfp4(weight) @ round_mxfp4(column) + layer.bias
    torch.testing.assert_close(emulate(layer, "mxfp4", x).flatten(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_precision_emulates_every_geometry(name: str, geometry: str) -> None:
    layer, x = convolution(**GEOMETRIES[geometry]), random(2, 64, 9, 9)
    expected = layer.apply(x, layer.weight)
    found = emulate(layer, name, x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    wide = precision(name).weight_bits >= 8
    assert relative_error(found, expected) < (0.06 if wide else 2.0)


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_integers_round_weights_by_channel_and_inputs_by_tensor_or_token(kind: str, bits: int) -> None:
    layer = convolution(4, 7) if kind == "conv" else take_weights(nn.Linear(20, 7))
    x = random(2, 4, 5, 5) if kind == "conv" else random(5, 20)
    scale = integer_weight_scale(layer.weight, bits)
    weight = dequantize_weight(quantize_weight(layer.weight, scale, bits), scale)
    rounded = fake_quantize(x, calibrated(x).affine[bits])
    if kind == "linear" and bits >= LEAST_TOKEN_BITS:
        tokens = quantize_tokens(x, bits)
        rounded = tokens.steps * tokens.scale
    torch.testing.assert_close(emulate(layer, f"int{bits}", x), layer.apply(rounded, weight))


@pytest.mark.parametrize(("name", "bits"), [("int8_wo", 8), ("int4_wo", 4)])
def test_weight_only_formats_compute_in_bf16(name: str, bits: int) -> None:
    layer, x = take_weights(nn.Linear(20, 7)), random(5, 20)
    scale = integer_weight_scale(layer.weight, bits)
    weight = round_float(dequantize_weight(quantize_weight(layer.weight, scale, bits), scale), "bf16")
    expected = round_float(F.linear(round_float(x, "bf16"), weight, layer.bias), "bf16")
    assert torch.equal(emulate(layer, name, x), expected)


def test_fp32_changes_nothing() -> None:
    layer, x = convolution(), random(1, 64, 5, 5)
    assert torch.equal(emulate(layer, "fp32", x), layer.apply(x, layer.weight))


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_nan_in_the_input_reaches_the_output_of_its_sample_only(name: str) -> None:
    layer, x = take_weights(nn.Linear(64, 8)), random(4, 64)
    kernel = pack(layer, precision(name), calibrated(x), native=True)
    x[2, 5] = math.nan
    nan = kernel.run(x).isnan()
    assert nan[2].all()
    assert not nan[[0, 1, 3]].any()


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_kernels_do_not_write_into_their_input(name: str, kind: str) -> None:
    layer = convolution() if kind == "conv" else take_weights(nn.Linear(64, 8))
    x = random(2, 64, 4, 4) if kind == "conv" else random(2, 64)
    before = x.clone()
    pack(layer, precision(name), calibrated(x), native=True).run(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", PRECISIONS)
def test_any_memory_layout_gives_the_same_result(name: str) -> None:
    layer, x = convolution(padding=1), random(2, 64, 6, 6)
    kernel = pack(layer, precision(name), calibrated(x), native=True)
    expected = kernel.run(x)
    strided = torch.empty(2, 64, 6, 12)[..., ::2]
    strided.copy_(x)
    # Sums in another order differ by 1e-7, which a 16-bit output may round to the neighbouring value.
    neighbour = {"bf16": 2.0**-7, "fp16": 2.0**-10}.get(precision(name).compute, 1e-4)
    for other in (x.contiguous(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(kernel.run(other), expected, atol=1e-4, rtol=neighbour)


def test_taking_weights_leaves_the_module_its_own() -> None:
    module = nn.Conv2d(2, 3, (1, 2), (2, 1), (0, 1), 1, bias=True)
    layer = take_weights(module)
    assert torch.equal(layer.weight, module.weight)
    assert layer.weight.data_ptr() != module.weight.data_ptr()
    assert layer.bias is not None
    assert module.bias is not None
    assert layer.bias.data_ptr() != module.bias.data_ptr()
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 1), (0, 1), (1, 1), 1)
    assert layer.is_conv
    assert not layer.weight.requires_grad
