"""The low-bit kernels of NVIDIA GPUs, for linear layers: fp8_e4m3, int8 and int4_wo.

Each is a matrix product of codes, and one pass over its result that applies the scales and adds the bias. The
product is an argument, so that everything around it runs, and is tested, on machines without a GPU.

Shapes: x is (..., in), the weight (out, in); rows are what x has before its last axis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.cuda import Fits, cuda_kernel
from wattbit.execution.kernels.kernel import Kernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import (
    TokenCodes,
    fp8_activation_scale,
    fp8_weight_scale,
    integer_weight_scale,
    quantize_tokens,
    quantize_weight,
)
from wattbit.numerics.floats import E4M3_MAX
from wattbit.precision import Precision

Int8Product = Callable[[Tensor, Tensor], Tensor]
"""int8 (rows, in) times int8 (in, out) -> int32 (rows, out), exact; as `torch._int_mm`."""

Fp8Product = Callable[[Tensor, Tensor], Tensor]
"""e4m3 (rows, in), row-major, times e4m3 (in, out), column-major -> float32 (rows, out)."""

Int4Pack = Callable[[Tensor, int], Tensor]
"""uint8 (out, in / 2), two codes a byte, and the inner k tiles -> what an `Int4Product` reads."""

Int4Product = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""bf16 (rows, in), packed codes, group size, bf16 (in / group, out, 2) -> bf16 (rows, out).

The last holds a scale and a zero for each group; a weight is ``code * scale + zero``, codes from -8 to 7.
"""

INT8_MULTIPLE = 8
"""`torch._int_mm` takes inputs and outputs that are multiples of this."""
FP8_MULTIPLE = 16
"""`torch._scaled_mm` takes inputs and outputs that are multiples of this."""
INT4_OUT_MULTIPLE = 8
INT4_IN_MULTIPLE = 32
"""`torch._weight_int4pack_mm` takes outputs and inputs that are multiples of these."""

# torch._int_mm wants more than 16 rows, and cuBLAS is at its best with whole tiles of 16.
_INT8_ROWS = 16
_INT8_LEAST_ROWS = 32
_INT4_GROUPS = (256, 128, 64, 32)
_INT4_INNER_TILES = (8, 4, 2)
_INT4_OFFSET = 8  # the code of weight 0


def _linear_multiples(out: int, width: int) -> Fits:
    def fits(layer: LayerWeights) -> bool:
        if layer.is_conv:
            return False
        rows, columns = layer.weight.shape
        return rows > 0 and columns > 0 and rows % out == 0 and columns % width == 0

    return fits


@cuda_kernel("fp8_e4m3", (8, 9), _linear_multiples(FP8_MULTIPLE, FP8_MULTIPLE))
def pack_fp8(
    layer: LayerWeights,
    precision: Precision,
    calibration: LayerCalibration,
    product: Fp8Product | None = None,
) -> Kernel:
    """Pack a linear ``layer`` for fp8_e4m3 products: static activation scale, a weight scale per output."""
    product = _scaled_product(layer.weight.device) if product is None else product
    scale = fp8_weight_scale(layer.weight)
    columns = _to_e4m3(layer.weight / scale[:, None]).t()
    x_scale = torch.full((), fp8_activation_scale(calibration.absmax), device=layer.weight.device)
    factor, zero = scale * x_scale, torch.zeros_like(x_scale)
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # Infinity times 0 is NaN, which stays where infinity would be clamped.
        total = product(_to_e4m3((rows / x_scale).addcmul_(rows, zero)), columns)
        return torch.addcmul(shift, total, factor).reshape(*x.shape[:-1], len(factor))

    return _unless_empty(run, layer)


@cuda_kernel("int8", (7, 5), _linear_multiples(INT8_MULTIPLE, INT8_MULTIPLE))
def pack_int8(
    layer: LayerWeights,
    precision: Precision,
    calibration: LayerCalibration,
    product: Int8Product = torch._int_mm,
) -> Kernel:
    """Pack a linear ``layer`` for int8 products, with an activation scale for each token.

    A token that holds a value that is not finite has a scale of NaN, and so has its output.
    """
    scale = integer_weight_scale(layer.weight, precision.weight_bits)
    columns = quantize_weight(layer.weight, scale, precision.weight_bits).contiguous().t()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias

    def run(x: Tensor) -> Tensor:
        tokens = quantize_tokens(x, precision.activation_bits)
        total = product(_signed_codes(tokens), columns)[: len(tokens.codes)]
        return torch.addcmul(bias, total * scale, tokens.scale).reshape(*x.shape[:-1], len(scale))

    return _unless_empty(run, layer)


@cuda_kernel("int4_wo", (8, 0), _linear_multiples(INT4_OUT_MULTIPLE, INT4_IN_MULTIPLE))
def pack_int4_wo(
    layer: LayerWeights,
    precision: Precision,
    calibration: LayerCalibration,
    pack: Int4Pack | None = None,
    product: Int4Product | None = None,
) -> Kernel:
    """Pack a linear ``layer`` with 4-bit weights that are widened to bf16 as they are multiplied.

    The device gets scales of 1, so that its weights are the codes themselves, which bf16 holds exactly; a
    scale that bf16 had to round would be off by up to 0.4 %. The real scales are applied to the product.
    """
    pack = torch.ops.aten._convert_weight_to_int4pack if pack is None else pack
    product = torch.ops.aten._weight_int4pack_mm if product is None else product
    out, width = layer.weight.shape
    group, inner_tiles = int4_tiling(width)
    scale = integer_weight_scale(layer.weight, precision.weight_bits)
    packed = pack(int4_bytes(quantize_weight(layer.weight, scale, precision.weight_bits)), inner_tiles)
    ones = torch.ones(width // group, out, 1, dtype=torch.bfloat16, device=layer.weight.device)
    scales_and_zeros = torch.cat([ones, torch.zeros_like(ones)], 2)
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(-1, width).to(torch.bfloat16).contiguous()
        total = product(rows, packed, group, scales_and_zeros)
        return torch.addcmul(shift, total, scale).reshape(*x.shape[:-1], out)

    return _unless_empty(run, layer)


def int4_bytes(codes: Tensor) -> Tensor:
    """Two codes from -8 to 7 a byte, that of the even column in the high half: int8 (out, in) -> uint8."""
    unsigned = (codes + _INT4_OFFSET).to(torch.uint8)
    return (unsigned[:, ::2] << 4 | unsigned[:, 1::2]).contiguous()


def int4_tiling(width: int) -> tuple[int, int]:
    """The largest group size and number of inner k tiles (of 16 inputs) that divide ``width``."""
    group = next(size for size in _INT4_GROUPS if width % size == 0)
    return group, next(tiles for tiles in _INT4_INNER_TILES if width % (16 * tiles) == 0)


def _signed_codes(tokens: TokenCodes) -> Tensor:
    """Codes less the zero point, int8; rows of zeros are added where the product wants more of them."""
    rows, width = tokens.codes.shape
    padded = max(_INT8_LEAST_ROWS, -(-rows // _INT8_ROWS) * _INT8_ROWS)
    codes = torch.zeros(padded, width, dtype=torch.int8, device=tokens.codes.device)
    # Flipping the highest bit takes 128 off: the byte is then to be read as a signed one.
    codes[:rows] = tokens.codes.bitwise_xor(tokens.zero_point).view(torch.int8)
    return codes


def _to_e4m3(x: Tensor) -> Tensor:
    # The cast alone would make NaN of what is too large, and keep a transposed layout.
    return x.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn, memory_format=torch.contiguous_format)


def _scaled_product(device: torch.device) -> Fp8Product:
    # One scale a tensor is what every device with e4m3 has; scales by row are not.
    one = torch.ones((), device=device)

    def product(rows: Tensor, columns: Tensor) -> Tensor:
        return torch._scaled_mm(rows, columns, one, one, out_dtype=torch.float32, use_fast_accum=False)

    return product


def _unless_empty(run: Kernel, layer: LayerWeights) -> Kernel:
    """No product takes 0 rows."""
    return lambda x: run(x) if x.numel() else layer.apply(x, layer.weight)
