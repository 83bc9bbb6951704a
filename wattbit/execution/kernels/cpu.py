"""Native int8 on x86 CPUs: oneDNN's packed convolution and linear layer.

A convolution's activations have one calibrated scale, a linear layer's one for each token, found as it comes.

oneDNN multiplies unsigned 8-bit activations by signed 8-bit weights and accumulates in int32. Without the
VNNI instructions it uses a 16-bit intermediate that can saturate, so such CPUs run int8 emulated.

Integers have no NaN and no infinity. An input that holds one runs emulated, so that it is carried to the
output, where whoever runs the model can see it.

oneDNN's integer convolutions are wrong, or crash, on two kinds of geometry, found by comparing thousands of
random ones with emulation: windows that lie in the padding as a whole, so such inputs are padded here; and
one channel a group with a stride along rows only, which runs emulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.beyond_range import farthest, run_split
from wattbit.execution.kernels.kernel import Kernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.registry import native_kernel
from wattbit.numerics import (
    AffineQuantizer,
    dequantize_weight,
    fake_quantize,
    integer_weight_scale,
    quantize,
    quantize_tokens,
    quantize_weight,
)
from wattbit.precision import Precision


@cache
def has_vnni() -> bool:
    """True if this CPU multiplies 8-bit integers without a saturating intermediate (VNNI)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _runs_int8(device: torch.device, precision: Precision) -> bool:
    return (
        device.type == "cpu"
        and precision.name == "int8"
        and has_vnni()
        and "onednn" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


def _supports_linear(device: torch.device, layer: LayerWeights, precision: Precision) -> bool:
    return not layer.is_conv and _runs_int8(device, precision)


def _supports_conv(device: torch.device, layer: LayerWeights, precision: Precision) -> bool:
    return layer.is_conv and _runs_int8(device, precision) and not _strides_along_rows_of_one_channel(layer)


def _strides_along_rows_of_one_channel(layer: LayerWeights) -> bool:
    """True for a geometry that oneDNN gets wrong where the output is one column wide."""
    return layer.weight.shape[1] == 1 and layer.stride[0] == 1 < layer.stride[1]


@dataclass(frozen=True, slots=True)
class _Emitted:
    """How an output is written: float32, or the codes of the layer that reads it, after a ReLU or not."""

    reader: AffineQuantizer | None = None
    relu: bool = False

    @property
    def arguments(self) -> tuple[float, int, torch.dtype, str]:
        """Scale, zero point, type and post-operation, as oneDNN's operators take them."""
        if self.reader is None:
            return 1.0, 0, torch.float32, "none"
        post = "relu" if self.relu else "none"
        return self.reader.scale, self.reader.zero_point, torch.uint8, post


def _pack_emitting_conv(
    layer: LayerWeights,
    precision: Precision,
    calibration: LayerCalibration,
    reader: AffineQuantizer,
    *,
    relu: bool,
) -> Kernel:
    return _pack_conv(layer, precision, calibration, _Emitted(reader, relu))


@native_kernel("onednn int8", _supports_conv, _pack_emitting_conv)
def _pack_conv(
    layer: LayerWeights, precision: Precision, calibration: LayerCalibration, emitted: _Emitted = _Emitted()
) -> Kernel:
    scale, codes = _weight_codes(layer, precision)
    quantizer = calibration.affine[precision.activation_bits]
    run_codes = pack_conv_codes(layer, codes, scale, quantizer, emitted)

    limit = farthest(calibration.absmax)

    def emulated(x: Tensor) -> Tensor:
        return layer.apply(fake_quantize(x, quantizer), dequantize_weight(codes, scale))

    def run(x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return run_codes(x)
        if not x.numel():
            return emulated(x)
        # The sum tells in one pass, where a test of every value would take longer than quantizing it does.
        if not abs(float(x.detach().sum())) <= limit:
            return run_split(emulated, layer, x, limit)
        if x.ndim == 3:
            return run_codes(quantize(x.unsqueeze(0), quantizer)).squeeze(0)
        return run_codes(quantize(x, quantizer))

    return run


@native_kernel("onednn int8", _supports_linear)
def _pack_linear(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """A linear layer on tokens, each with a scale of its own, which is applied to what oneDNN gives."""
    scale, codes = _weight_codes(layer, precision)
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    packed = torch.ops.onednn.qlinear_prepack(codes, None)

    def run(x: Tensor) -> Tensor:
        if not x.numel():
            return layer.apply(x, layer.weight)
        tokens = quantize_tokens(x, precision.activation_bits)
        if math.isnan(float(tokens.scale.sum())):
            return run_split(run, layer, x)
        y = torch.ops.onednn.qlinear_pointwise(
            tokens.codes, 1.0, tokens.zero_point, packed, scale, zero_points, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(bias, y, tokens.scale).reshape(*x.shape[:-1], len(scale))

    return run


def _weight_codes(layer: LayerWeights, precision: Precision) -> tuple[Tensor, Tensor]:
    """The scale of each output channel, and the weights in steps of it, int8."""
    scale = integer_weight_scale(layer.weight, precision.weight_bits)
    return scale, quantize_weight(layer.weight, scale, precision.weight_bits)


def pack_conv_codes(
    layer: LayerWeights, codes: Tensor, scale: Tensor, quantizer: AffineQuantizer, emitted: _Emitted
) -> Kernel:
    """A convolution of activations that are quantized already; at least one, with a batch axis."""
    x_scale, x_zero = quantizer.scale, quantizer.zero_point
    y_scale, y_zero, y_type, post = emitted.arguments
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    bias = layer.bias
    height, width = layer.padding
    pads_itself = _windows_reach_the_input(layer)
    padding = [height, width] if pads_itself else [0, 0]
    geometry = (list(layer.stride), padding, list(layer.dilation), layer.groups)
    packed = torch.ops.onednn.qconv_prepack(codes, scale, x_scale, x_zero, *geometry)

    def run_conv(x: Tensor) -> Tensor:
        contiguous = x.is_contiguous()
        if not pads_itself:
            x = F.pad(x, (width, width, height, height), value=x_zero)
        y: Tensor = torch.ops.onednn.qconv_pointwise(
            x, x_scale, x_zero, packed, scale, zero_points, bias,
            *geometry, y_scale, y_zero, y_type, post, [], None,
        )  # fmt: skip
        # oneDNN writes channels last; torch's own convolution answers in the layout of its input, and code
        # that calls `view` on the answer relies on it.
        return y.contiguous() if contiguous else y

    return run_conv


def _windows_reach_the_input(layer: LayerWeights) -> bool:
    """True if no window of a convolution lies in the padding as a whole, whatever the size of the input."""
    sides = zip(layer.padding, layer.weight.shape[2:], layer.dilation, strict=True)
    return all(padding == 0 or (dilation == 1 and padding < kernel) for padding, kernel, dilation in sides)
