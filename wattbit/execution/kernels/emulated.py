"""Emulated kernels: float32 arithmetic on values that the emulated format can represent.

They say what a precision does to accuracy on any device. They save no energy here, so energy under
emulation can only be ``modelled``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.beyond_range import LARGEST, farthest, guarded
from wattbit.execution.kernels.kernel import Kernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import (
    LEAST_TOKEN_BITS,
    dequantize_weight,
    fp8_activation_scale,
    fp8_weight,
    integer_weight_scale,
    quantize_steps,
    quantize_tokens,
    quantize_weight,
    round_float,
    round_mxfp4,
    round_nvfp4,
    scale_round_fp8,
)
from wattbit.numerics.blocks import nvfp4_tensor_scale
from wattbit.precision import Precision


def pack_emulated(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """Prepare ``layer`` to run at ``precision``: weights are rounded once, inputs at each call."""
    if precision.weight_only:
        return _pack_weight_only(layer, precision)
    limit = farthest(calibration.absmax)
    if precision.family == "int":
        if not layer.is_conv and precision.activation_bits >= LEAST_TOKEN_BITS:
            return guarded(_pack_tokens(layer, precision), layer)
        return guarded(_pack_integer(layer, precision, calibration), layer, limit)
    if precision.family == "block":
        block = _pack_block(layer, precision, calibration)
        return guarded(block, layer, LARGEST if precision.name == "mxfp4" else limit)
    if precision.name == "fp8_e4m3":
        return guarded(_pack_fp8(layer, calibration), layer, limit)
    return _pack_float(layer, precision)


def _pack_float(layer: LayerWeights, precision: Precision) -> Kernel:
    name = precision.name
    # Replaced, so that what was rounded is not kept beside it.
    layer = replace(layer, weight=round_float(layer.weight, name))

    def run(x: Tensor) -> Tensor:
        y = layer.apply(round_float(x, name), layer.weight)
        # 16-bit kernels accumulate in float32 and round once, when they write their output.
        return round_float(y, name) if precision.activation_bits == 16 else y

    return run


def _pack_fp8(layer: LayerWeights, calibration: LayerCalibration) -> Kernel:
    weight = fp8_weight(layer.weight)
    x_scale = fp8_activation_scale(calibration.absmax)
    return lambda x: layer.apply(scale_round_fp8(x, x_scale), weight)


def _pack_integer(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """Integers times integers, held exactly in float32; scales and bias in the order of integer kernels.

    Rounded values times rounded values would differ from such a kernel in the last bits, and the next layer
    rounds some of these differences up to whole steps.
    """
    scale, codes = _float_codes(layer, precision)
    quantizer = calibration.affine[precision.activation_bits]
    scale = layer.per_output(scale)
    bias = 0.0 if layer.bias is None else layer.per_output(layer.bias)

    def run(x: Tensor) -> Tensor:
        total = layer.multiply(quantize_steps(x, quantizer), codes)
        return total.mul_(quantizer.scale).mul_(scale).add_(bias)

    return run


def _float_codes(layer: LayerWeights, precision: Precision) -> tuple[Tensor, Tensor]:
    scale = integer_weight_scale(layer.weight, precision.weight_bits)
    return scale, quantize_weight(layer.weight, scale, precision.weight_bits).to(torch.float32)


def _pack_tokens(layer: LayerWeights, precision: Precision) -> Kernel:
    scale, codes = _float_codes(layer, precision)
    bits = precision.activation_bits
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias

    def run(x: Tensor) -> Tensor:
        tokens = quantize_tokens(x, bits)
        total = layer.multiply(tokens.steps, codes).mul_(scale)
        return torch.addcmul(bias, total, tokens.scale).reshape(*x.shape[:-1], len(scale))

    return run


def _pack_weight_only(layer: LayerWeights, precision: Precision) -> Kernel:
    scale = integer_weight_scale(layer.weight, precision.weight_bits)
    codes = quantize_weight(layer.weight, scale, precision.weight_bits)
    weight = round_float(dequantize_weight(codes, scale), precision.compute)
    widened = Precision(precision.compute, "float", 16, 16, precision.compute)
    return _pack_float(replace(layer, weight=weight), widened)


def _pack_block(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """Blocks lie along the axis that is summed over, in (kernel row, kernel column, channel) order.

    Where a block holds channels of one pixel only, the input can be rounded before the convolution; else
    the convolution is unfolded into a matrix product, so that blocks cross pixels as they do on hardware.
    """
    x_scale = nvfp4_tensor_scale(torch.tensor(calibration.absmax, device=layer.weight.device))

    def round_input(x: Tensor) -> Tensor:
        return round_mxfp4(x) if precision.name == "mxfp4" else round_nvfp4(x, x_scale)

    def round_weight(weight: Tensor) -> Tensor:
        return round_mxfp4(weight) if precision.name == "mxfp4" else round_nvfp4(weight)

    if not layer.is_conv:
        weight = round_weight(layer.weight)
        return lambda x: layer.apply(round_input(x), weight)
    rows = layer.weight.permute(0, 2, 3, 1)
    if layer.weight.shape[1] % precision.block_size == 0:
        weight = round_weight(rows).permute(0, 3, 1, 2).contiguous()
        # Channels are the third axis from the end, also in a single image without a batch axis.
        return lambda x: layer.apply(round_input(x.movedim(-3, -1)).movedim(-1, -3), weight)
    unfolded = pack_unfolded(layer, round_weight(rows.flatten(1)), round_input)
    return lambda x: unfolded(x) if x.ndim == 4 else unfolded(x.unsqueeze(0)).squeeze(0)


def pack_unfolded(layer: LayerWeights, weight: Tensor, round_input: Kernel) -> Kernel:
    """A convolution as a product of ``weight``, (out, kernel height * width * channels), with patches.

    ``round_input`` rounds the patches, whose values lie along the last axis as those of ``weight`` do.
    """
    groups, (kernel_h, kernel_w) = layer.groups, layer.weight.shape[2:]
    grouped = weight.reshape(groups, -1, weight.shape[1])  # (g, out / g, k)

    def run(x: Tensor) -> Tensor:
        samples, channels, height, width = x.shape
        columns = F.unfold(x, (kernel_h, kernel_w), layer.dilation, layer.padding, layer.stride)
        pixels = columns.shape[2]
        columns = columns.reshape(samples, groups, channels // groups, kernel_h * kernel_w, pixels)
        columns = columns.permute(0, 1, 4, 3, 2).flatten(3)  # (n, g, pixels, kh * kw * c)
        y = torch.einsum("ngpk,gok->ngop", round_input(columns), grouped)
        out_h, out_w = (
            (size + 2 * layer.padding[i] - layer.dilation[i] * (kernel - 1) - 1) // layer.stride[i] + 1
            for i, (size, kernel) in enumerate(((height, kernel_h), (width, kernel_w)))
        )
        y = y.reshape(samples, len(weight), out_h, out_w)
        return y if layer.bias is None else y + layer.bias.reshape(1, -1, 1, 1)

    return run
