"""The float kernels of NVIDIA GPUs: tf32, bf16 and fp16 for linear layers and convolutions.

Inputs and outputs stay float32, as everywhere; a 16-bit kernel casts its input and its output, and what that
costs is part of what is measured. Products are accumulated in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.cuda import cuda_kernel
from wattbit.execution.kernels.kernel import Kernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import round_float
from wattbit.precision import Precision

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# The switch for TF32 in matrix products is one for the whole process. Without the lock, two threads that set
# it and put it back could leave it on for good.
_TF32_LOCK = threading.RLock()


def _fits_tf32(layer: LayerWeights) -> bool:
    if not layer.is_conv:
        return True
    # Of convolutions only cuDNN's know TF32, and torch runs depthwise ones in float32 without cuDNN.
    has_cudnn = bool(torch.backends.cudnn.is_available())  # type: ignore[no-untyped-call]
    return layer.groups == 1 and has_cudnn and torch.backends.cudnn.enabled


@cuda_kernel("tf32", (8, 0), _fits_tf32)
def pack_tf32(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """Pack ``layer`` to run in TF32: the weight is rounded once, inputs by the hardware as it reads them."""
    weight = round_float(layer.weight, "tf32")
    if not layer.is_conv:

        def run_linear(x: Tensor) -> Tensor:
            with tf32_products():
                return F.linear(x, weight, layer.bias)

        return run_linear

    def run_conv(x: Tensor) -> Tensor:
        images = x if x.ndim == 4 else x.unsqueeze(0)
        # This form, unlike F.conv2d, is told per call whether TF32 is allowed.
        y = torch._convolution(
            images, weight, layer.bias, layer.stride, layer.padding, layer.dilation, False, (0, 0),
            layer.groups, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, True, True,
        )  # fmt: skip
        return y if x.ndim == 4 else y.squeeze(0)

    return run_conv


# Earlier devices take fp16, but without tensor cores.
@cuda_kernel("fp16", (7, 0), lambda layer: True)
@cuda_kernel("bf16", (8, 0), lambda layer: True)
def pack_half(layer: LayerWeights, precision: Precision, calibration: LayerCalibration) -> Kernel:
    """Pack ``layer`` to run in bf16 or fp16: weight and bias are rounded once, inputs at each call."""
    dtype = _HALVES[precision.name]
    weight = layer.weight.to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    if not layer.is_conv:
        return lambda x: F.linear(x.to(dtype), weight, bias).to(torch.float32)
    # Tensor cores read the channels of a pixel together; in this layout nothing has to be transposed.
    weight = weight.contiguous(memory_format=torch.channels_last)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def run(x: Tensor) -> Tensor:
        images = x if x.ndim == 4 else x.unsqueeze(0)
        layout = _layout(images)
        half = images.to(dtype, memory_format=torch.channels_last)
        y = F.conv2d(half, weight, bias, *geometry).to(torch.float32, memory_format=layout)
        return y if x.ndim == 4 else y.squeeze(0)

    return run


@contextmanager
def tf32_products() -> Iterator[None]:
    """Allow TF32 in the float32 matrix products that are launched inside.

    The switch is the process's: a float32 product that another thread launches in the same microseconds may
    run in TF32 too. torch has none for a single call.
    """
    with _TF32_LOCK:
        switch = torch.backends.cuda.matmul
        # torch 2.9 replaced `allow_tf32`, and refuses reads of the old name where both are used.
        name, on = ("fp32_precision", "tf32") if has_fp32_precision() else ("allow_tf32", True)
        before = getattr(switch, name)
        setattr(switch, name, on)
        try:
            yield
        finally:
            setattr(switch, name, before)


def has_fp32_precision() -> bool:
    """True if this torch names the precision of float32 products (2.9 and later)."""
    return hasattr(torch._C, "_get_fp32_precision_getter")


def _layout(images: Tensor) -> torch.memory_format:
    """The layout of the original convolution's answer, on which later code may rely, as `view` does."""
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
