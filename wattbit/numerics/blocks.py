"""Block formats: fp4_e2m1 elements that share a scale with their neighbours along the last axis.

The last block is padded with zeros where the axis is no multiple of the block. A block that holds a NaN
becomes NaN as a whole, because its elements have no code for NaN and only the shared scale can say so.

Sources: OCP Microscaling Formats (MX) 1.0, sections 5.1 and 6.3, for MXFP4; NVIDIA, "Pretraining Large
Language Models with NVFP4", 2025 (arXiv:2509.25149), for NVFP4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from wattbit.numerics.floats import (
    E2M1_MAX,
    E4M3_MAX,
    EXPONENT_BIAS,
    EXPONENT_BITS,
    MANTISSA_WIDTH,
    SMALLEST_SCALE,
    round_e2m1_,
    round_e4m3_,
    scalar_like,
)
from wattbit.precision import PRECISIONS

MXFP4_BLOCK = PRECISIONS["mxfp4"].block_size
NVFP4_BLOCK = PRECISIONS["nvfp4"].block_size
E2M1_LARGEST_EXPONENT = 2
MAGNITUDE_BITS = 0x7FFFFFFF  # of a float32


def round_mxfp4(x: Tensor) -> Tensor:
    """Round ``x`` to MXFP4: blocks of 32 along the last axis share a power of two.

    The shared scale is ``2^(floor(log2(largest magnitude in the block)) - 2)``, at least 2^-127 (the range of
    E8M0); elements saturate at 6 times the scale. Infinity stays infinity and takes the small values of its
    block to zero.

    Args:
        x: float32 of shape (..., n).

    Returns:
        float32 of the same shape.
    """
    return _by_blocks(x, MXFP4_BLOCK, _round_mxfp4_blocks)


def round_nvfp4(x: Tensor, tensor_scale: Tensor | float | None = None) -> Tensor:
    """Round ``x`` to NVFP4: blocks of 16 along the last axis share an E4M3 scale, all of them a tensor scale.

    The block scale is ``round_e4m3(largest magnitude in the block / 6 / tensor_scale)``, and elements are
    ``round_e2m1(x / (block scale * tensor_scale))``. A block whose scale rounds to 0 becomes zeros. What
    exceeds a given tensor scale, infinity included, saturates at 6 * 448 times it.

    Args:
        x: float32 of shape (..., n).
        tensor_scale: float32 of no dimensions, or a positive number; by default the largest magnitude of
            ``x`` / (448 * 6), with which a NaN or infinity anywhere makes the whole tensor NaN.

    Returns:
        float32 of the same shape.
    """

    def rounding(blocks: Tensor, dim: int) -> Tensor:
        return _round_nvfp4_blocks(blocks, dim, tensor_scale)

    return _by_blocks(x, NVFP4_BLOCK, rounding)


def nvfp4_tensor_scale(magnitude: Tensor) -> Tensor:
    """The tensor scale that lets a block of the given largest magnitude use the largest block scale.

    Args:
        magnitude: The largest magnitude in the tensor: float32 of no dimensions, not negative.

    Returns:
        ``magnitude / (448 * 6)``, float32 of no dimensions, kept above 0.
    """
    return magnitude.div(scalar_like(E4M3_MAX * E2M1_MAX, magnitude)).clamp_(min=SMALLEST_SCALE)


def _round_mxfp4_blocks(blocks: Tensor, dim: int) -> Tensor:
    magnitude = _magnitude(blocks, dim)
    # The float32 exponent field of the magnitude, less 2, is the E8M0 code of the scale. The reciprocal of a
    # scale is a normal number for every code, the scale itself is not (code 0 is 2^-127).
    field = magnitude.view(torch.int32).bitwise_and(EXPONENT_BITS)
    field.sub_(E2M1_LARGEST_EXPONENT << MANTISSA_WIDTH).clamp_(min=0)
    reciprocal = field.neg_().add_(2 * EXPONENT_BIAS << MANTISSA_WIDTH).view(torch.float32)
    scale = reciprocal.reciprocal().masked_fill_(magnitude.isnan(), math.nan)
    return round_e2m1_(blocks * reciprocal).mul_(scale)


def _round_nvfp4_blocks(blocks: Tensor, dim: int, tensor_scale: Tensor | float | None) -> Tensor:
    magnitude = _magnitude(blocks, dim)
    if tensor_scale is None:
        tensor_scale = nvfp4_tensor_scale(magnitude.amax())
    elif isinstance(tensor_scale, Tensor):
        tensor_scale = tensor_scale.to(blocks.device)
    else:
        tensor_scale = scalar_like(tensor_scale, blocks)
    block_scale = round_e4m3_(magnitude / scalar_like(E2M1_MAX, blocks) / tensor_scale)
    scale = block_scale.mul_(tensor_scale)
    divisor = scale.masked_fill(scale == 0, 1.0)  # zeros come from the multiplication by the scale, not 0/0
    return round_e2m1_(blocks / divisor).mul_(scale)


def _magnitude(blocks: Tensor, dim: int) -> Tensor:
    """The largest magnitude in each block, NaN where there is one; of size 1 along ``dim``."""
    # Without the sign, floats compare like integers, NaN above all numbers; integers are twice as fast here.
    return blocks.view(torch.int32).bitwise_and(MAGNITUDE_BITS).amax(dim, keepdim=True).view(torch.float32)


def _by_blocks(x: Tensor, size: int, rounding: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply ``rounding`` to ``x`` cut into blocks along its last axis.

    ``rounding`` gets the blocks and the dimension along which a block lies. Dimensions come in the order of
    memory, so that a last axis that was moved there (the channels of an image) costs no strided access.
    """
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    axis = order.index(x.dim() - 1)
    stored = x.detach().permute(order)
    length = stored.shape[axis]
    if length % size:
        stored = F.pad(stored, (0, 0) * (x.dim() - 1 - axis) + (0, -length % size))
    before, after = stored.shape[:axis], stored.shape[axis + 1 :]
    blocks = stored.reshape(*before, stored.shape[axis] // size, size, *after)
    rounded = rounding(blocks, axis + 1).flatten(axis, axis + 1).narrow(axis, 0, length)
    return rounded.permute([order.index(dim) for dim in range(x.dim())])
