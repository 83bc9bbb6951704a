"""Stand-ins for the CUDA device's operations, as strict as they are, and layers to run on them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.cuda import CUDA_OPERATIONS, CudaOperation
from wattbit.execution.kernels.cuda_low_bit import pack_fp8, pack_int4_wo, pack_int8
from wattbit.execution.kernels.kernel import Pack
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import activation_quantizer
from wattbit.precision import precision

CUDA = torch.device("cuda:0")
INT8, FP8, INT4_WO = precision("int8"), precision("fp8_e4m3"), precision("int4_wo")


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """`torch._int_mm` as CUDA documents it."""
    assert a.dtype == b.dtype == torch.int8
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert a.shape[0] > 16
    assert a.shape[1] % 8 == 0
    assert b.shape[1] % 8 == 0
    return (a.double() @ b.double()).to(torch.int32)


def fp8_product(a: Tensor, b: Tensor) -> Tensor:
    """`torch._scaled_mm` with scales of 1, as CUDA documents it."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert a.shape[1] % 16 == 0
    assert b.shape[1] % 16 == 0
    return (a.double() @ b.double()).float()


def int4_pack(codes: Tensor, inner_tiles: int) -> Tensor:
    """`torch._convert_weight_to_int4pack` as CUDA documents it; the layout is the device's own affair."""
    assert codes.dtype == torch.uint8
    assert codes.is_contiguous()
    assert inner_tiles in (2, 4, 8)
    assert codes.shape[1] * 2 % (16 * inner_tiles) == 0
    return codes


def int4_product(a: Tensor, packed: Tensor, group: int, scales_and_zeros: Tensor) -> Tensor:
    """`torch._weight_int4pack_mm` as CUDA documents it: even columns lie in the high halves."""
    width = a.shape[1]
    assert a.dtype == scales_and_zeros.dtype == torch.bfloat16
    assert a.is_contiguous()
    assert group in (32, 64, 128, 256)
    assert width % group == 0
    assert scales_and_zeros.shape == (width // group, len(packed), 2)
    assert scales_and_zeros.is_contiguous()
    codes = torch.stack([packed >> 4, packed & 0xF], 2).flatten(1).double() - 8
    scales, zeros = scales_and_zeros.double().repeat_interleave(group, 0).unbind(2)
    weight = (codes * scales.t() + zeros.t()).bfloat16()
    return (a.double() @ weight.double().t()).bfloat16()


def with_stand_in(name: str) -> Pack:
    """The pack function of a low-bit precision, with its stand-in for the device's operation."""
    packs: dict[str, Pack] = {
        "int8": partial(pack_int8, product=int8_product),
        "fp8_e4m3": partial(pack_fp8, product=fp8_product),
        "int4_wo": partial(pack_int4_wo, pack=int4_pack, product=int4_product),
    }
    return packs[name]


def operation(name: str) -> CudaOperation:
    return next(operation for operation in CUDA_OPERATIONS if operation.precision == name)


def linear(out: int, width: int, *, bias: bool = True, seed: int = 0) -> LayerWeights:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator) * torch.rand(out, 1, generator=generator) * 3
    return LayerWeights(weight, torch.randn(out, generator=generator) if bias else None)


def conv(groups: int = 1, *, stride: int = 1) -> LayerWeights:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 8 // groups, 3, 3, generator=generator)
    return LayerWeights(weight, torch.randn(8, generator=generator), (stride, stride), (1, 1), groups=groups)


def calibrated(x: Tensor) -> LayerCalibration:
    return LayerCalibration(float(x.abs().max()), {8: activation_quantizer(x, 8)})


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
