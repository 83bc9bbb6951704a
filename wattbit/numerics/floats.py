"""Formats whose every value has its own exponent: tf32, bf16, fp16, fp8_e4m3, and the elements fp4_e2m1.

All round to nearest, ties to even. The small formats saturate: what is too large, infinity included, becomes
the largest value of the format. NaN stays NaN, and zero keeps its sign.

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0 for E4M3, where 448 is the largest value and there
is no infinity; OCP Microscaling Formats (MX) 1.0 for E2M1; CUDA C++ Programming Guide for TF32 (the exponent
of fp32, 10 bits of mantissa).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wattbit.errors import ModelError, PrecisionError

E4M3_MAX = 448.0
E2M1_MAX = 6.0
EXPONENT_BITS = 0x7F800000  # of a float32
MANTISSA_WIDTH = 23
EXPONENT_BIAS = 127
_PART = 1 << 17
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # below it, the reciprocal of a scale would overflow


def round_float(x: Tensor, name: str) -> Tensor:
    """Round ``x`` to the nearest values of a float format.

    Args:
        x: float32, any shape.
        name: One of `FLOAT_FORMATS`.

    Returns:
        float32 of the same shape; ``x`` itself for fp32, else a new tensor. fp16 and bf16 overflow to
        infinity as the hardware's cast does; fp8_e4m3 and fp4_e2m1 saturate.

    Raises:
        PrecisionError: If there is no float format of that name.
    """
    try:
        rounding = _ROUNDING[name]
    except KeyError:
        raise PrecisionError(f"no float format {name!r}: choose from {', '.join(FLOAT_FORMATS)}") from None
    return x if name == "fp32" else rounding(x.detach())


def round_e4m3_(x: Tensor) -> Tensor:
    """Round a newly made float32 ``x`` in place to fp8_e4m3, saturating at +-448."""
    return _round_small_(x, mantissa_bits=3, smallest_exponent=-6, largest=E4M3_MAX)


def round_e2m1_(x: Tensor) -> Tensor:
    """Round a newly made float32 ``x`` in place to fp4_e2m1 (0, +-0.5, 1, 1.5, 2, 3, 4, 6), saturating."""
    return _round_small_(x, mantissa_bits=1, smallest_exponent=0, largest=E2M1_MAX)


def fp8_weight_scale(weight: Tensor) -> Tensor:
    """The scale of each output channel that maps the channel's largest magnitude to 448.

    Args:
        weight: float32 of shape (out, ...).

    Returns:
        float32 of shape (out,); 1.0 for a channel of zeros.

    Raises:
        ModelError: If the weight holds NaN or infinity.
    """
    return safe_scale(channel_magnitude(weight, "fp8_e4m3"), E4M3_MAX)


def fp8_activation_scale(magnitude: float) -> float:
    """The scale that maps the largest magnitude observed in calibration to 448; 1.0 if only zeros were seen.

    Raises:
        ModelError: If ``magnitude`` is negative, NaN or infinite.
    """
    if not 0.0 <= magnitude < math.inf:
        raise ModelError(
            f"largest activation is {magnitude}: fp8_e4m3 needs one that is finite and not negative; "
            "calibrate on inputs for which the model's activations are finite"
        )
    # Through float32, so that the scale is the one a device holds.
    return safe_scale(torch.tensor(magnitude, dtype=torch.float32), E4M3_MAX).item()


def scale_round_fp8(x: Tensor, scale: Tensor | float) -> Tensor:
    """Round ``x`` to fp8_e4m3 at a scale: ``round(x / scale) * scale``.

    Args:
        x: float32, any shape.
        scale: One for the whole tensor, or float32 of shape (out,), one for each index of the first axis.

    Returns:
        float32 of the shape of ``x``.
    """
    if not isinstance(scale, Tensor):
        scale = scalar_like(scale, x)
    elif scale.dim() == 1:
        scale = per_channel(scale, x)
    return round_e4m3_(x.detach() / scale).mul_(scale)


def fp8_weight(weight: Tensor) -> Tensor:
    """Round a weight of shape (out, ...) to fp8_e4m3 at its `fp8_weight_scale`; float32, the same shape."""
    return scale_round_fp8(weight, fp8_weight_scale(weight))


def channel_magnitude(weight: Tensor, name: str) -> Tensor:
    """The largest magnitude in each output channel of ``weight`` (out, ...), as shape (out,).

    Raises:
        ModelError: If the weight holds NaN or infinity; the message gives ``name`` as the format asked for.
    """
    magnitude = weight.detach().flatten(1).abs().amax(1)
    finite = magnitude.isfinite()
    if not finite.all():
        channel = int(finite.logical_not().nonzero()[0])
        raise ModelError(
            f"output channel {channel} of a weight holds NaN or infinity: {name} needs finite weights; "
            "repair the model, or keep this layer at a wider precision"
        )
    return magnitude


def safe_scale(magnitude: Tensor, largest: float) -> Tensor:
    """``magnitude / largest``, but 1 where the magnitude is 0, and never so small that 1/scale overflows."""
    scale = magnitude.div(scalar_like(largest, magnitude)).clamp_(min=SMALLEST_SCALE)
    return scale.masked_fill_(magnitude == 0, 1.0)


def scalar_like(value: float, x: Tensor) -> Tensor:
    """``value`` as a float32 tensor of no dimensions on the device of ``x``.

    CUDA divides by such a tensor, but multiplies by the reciprocal of a Python number, which can differ in
    the last bit from what a CPU does.
    """
    return torch.full((), value, dtype=torch.float32, device=x.device)


def per_channel(scale: Tensor, x: Tensor) -> Tensor:
    """``scale`` of shape (out,) in a shape that broadcasts along the first axis of ``x``."""
    return scale.view(-1, *(1,) * (x.dim() - 1))


def _round_small_(x: Tensor, mantissa_bits: int, smallest_exponent: int, largest: float) -> Tensor:
    # Divide by the distance between neighbours, a power of two and therefore exact, round, multiply back.
    # Five times as fast on a CPU as a cast to torch.float8_e4m3fn and back; E2M1 has no cast.
    smallest_field = (smallest_exponent + EXPONENT_BIAS) << MANTISSA_WIDTH
    for part, scratch in _parts(x):
        part.clamp_(-largest, largest)
        field = torch.bitwise_and(part.view(torch.int32), EXPONENT_BITS, out=scratch)
        field.clamp_(min=smallest_field).sub_(mantissa_bits << MANTISSA_WIDTH)
        distance = field.view(torch.float32)
        part.div_(distance).round_().mul_(distance)
    return x


def _round_tf32_(x: Tensor) -> Tensor:
    dropped = 13
    for part, scratch in _parts(x):
        bits = part.view(torch.int32)
        # Add just under half of the last kept bit, and one more if it is odd; a carry moves the exponent.
        rounded = torch.bitwise_right_shift(bits, dropped, out=scratch).bitwise_and_(1).add_(bits)
        rounded.add_((1 << (dropped - 1)) - 1).bitwise_and_(-1 << dropped)
        # Only NaN can be damaged by the carry. Clamping a number to [r, r] yields r, and NaN stays NaN.
        limit = rounded.view(torch.float32)
        torch.clamp(part, limit, limit, out=part)
    return x


def _parts(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views that together are a newly made ``x``, each with int32 scratch space of its shape.

    On a CPU they are short enough to stay in its cache; a whole second tensor was measured to cost up to four
    times the arithmetic, in page faults.
    """
    if x.numel() <= _PART or x.device.type != "cpu":
        yield x, torch.empty_like(x, dtype=torch.int32)
        return
    scratch = torch.empty(_PART, dtype=torch.int32)
    for part in torch.split(x.as_strided((x.numel(),), (1,)), _PART):
        yield part, scratch[: len(part)]


_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda x: x,
    "tf32": lambda x: _round_tf32_(x.clone()),
    "bf16": lambda x: x.to(torch.bfloat16).to(torch.float32),
    "fp16": lambda x: x.to(torch.float16).to(torch.float32),
    "fp8_e4m3": lambda x: round_e4m3_(x.clone()),
    "fp4_e2m1": lambda x: round_e2m1_(x.clone()),
}

FLOAT_FORMATS = tuple(_ROUNDING)
"""The names `round_float` knows; ``fp4_e2m1`` is the element of the block formats, not a precision."""
