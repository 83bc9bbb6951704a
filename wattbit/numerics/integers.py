"""Integers: symmetric weights with a scale for each output channel, affine activations with one for a tensor.

A weight is ``code * scale`` with codes from -(2^(b-1) - 1) to 2^(b-1) - 1; an activation is
``(code - zero_point) * scale`` with codes from 0 to 2^b - 1, one of which is exactly 0.0. Both round to
nearest, ties to even. (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1, with the lowest code of weights left unused.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wattbit.errors import ModelError, PrecisionError
from wattbit.numerics.floats import SMALLEST_SCALE, channel_magnitude, per_channel, safe_scale

# Clip fractions tried for weights: a geometric grid from 1 down, then a finer one around a channel's best.
# It goes low enough for 2 bits: three levels suit a Gaussian best at 1.22 standard deviations (Max,
# "Quantizing for minimum distortion", 1960), 0.3 of the largest of 4000 weights; outliers make it less.
_COARSE = 48
_SMALLEST_FRACTION = 0.02
_RATIO = _SMALLEST_FRACTION ** (1 / (_COARSE - 1))
_FINE = tuple(_RATIO ** (step / 8) for step in range(-7, 8) if step)


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """The interval of values a layer's input takes, widened so that it holds 0.

    Attributes:
        low: At most 0.
        high: At least 0.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= 0.0 <= self.high < math.inf:
            raise ModelError(
                f"activation range [{self.low}, {self.high}] must be finite and hold 0; "
                "calibrate on inputs for which the model's activations are finite"
            )

    @classmethod
    def of(cls, sample: Tensor) -> ActivationRange:
        """The range of the values in ``sample`` (any shape, at least one value) and 0.

        Raises:
            ModelError: If a value is NaN or infinite.
        """
        low, high = torch.aminmax(sample.detach())
        return cls(min(low.item(), 0.0), max(high.item(), 0.0))

    @property
    def magnitude(self) -> float:
        """The largest absolute value in the range."""
        return max(-self.low, self.high)


@dataclass(frozen=True, slots=True)
class AffineQuantizer:
    """Maps real values to codes from 0 to 2^bits - 1: ``code = round(x / scale) + zero_point``, clamped.

    Attributes:
        scale: Distance between neighbouring values, a float32 number.
        zero_point: The code of 0.0.
        bits: Width of a code, 2 to 8.
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        largest = largest_activation_code(self.bits)
        if not SMALLEST_SCALE <= self.scale < math.inf:
            raise PrecisionError(f"scale {self.scale} must be finite and at least {SMALLEST_SCALE:.3g}")
        if not 0 <= self.zero_point <= largest:
            raise PrecisionError(f"zero point {self.zero_point} must be a code from 0 to {largest}")

    @classmethod
    def spanning(cls, span: ActivationRange, bits: int) -> AffineQuantizer:
        """The quantizer whose codes cover ``span``, moved by at most half a step so that 0 is a code."""
        largest = largest_activation_code(bits)
        if span.magnitude == 0.0:
            return cls(1.0, 0, bits)
        scale = max((span.high - span.low) / largest, SMALLEST_SCALE)
        scale = torch.tensor(scale, dtype=torch.float32).item()  # what every device will hold
        return cls(scale, min(max(round(-span.low / scale), 0), largest), bits)

    @property
    def lowest_step(self) -> int:
        """The lowest representable value, in steps of ``scale``."""
        return -self.zero_point

    @property
    def highest_step(self) -> int:
        """The highest representable value, in steps of ``scale``."""
        return largest_activation_code(self.bits) - self.zero_point


def largest_weight_code(bits: int) -> int:
    """The largest code of a weight: 2^(bits - 1) - 1; codes are symmetric around 0.

    Raises:
        PrecisionError: If ``bits`` is not from 2 to 8.
    """
    return (1 << (_check_bits(bits) - 1)) - 1


def largest_activation_code(bits: int) -> int:
    """The largest code of an activation: 2^bits - 1; the smallest is 0.

    Raises:
        PrecisionError: If ``bits`` is not from 2 to 8.
    """
    return (1 << _check_bits(bits)) - 1


@torch.no_grad()
def integer_weight_scale(weight: Tensor, bits: int) -> Tensor:
    """The scale of each output channel that minimises the squared error of the rounded weights.

    Searches clips from 1 down to 0.02 of the channel's largest magnitude, in steps of about 1 % around the
    best; the unclipped scale is among them, so the result is never worse than that.

    Args:
        weight: float32 of shape (out, ...).
        bits: Width of a code, 2 to 8.

    Returns:
        float32 of shape (out,); 1.0 for a channel of zeros.

    Raises:
        ModelError: If the weight holds NaN or infinity.
        PrecisionError: If ``bits`` is not from 2 to 8.
    """
    largest = largest_weight_code(bits)
    magnitude = channel_magnitude(weight, f"int{bits}")
    # Channels scaled to a magnitude of 1, so that no square over- or underflows.
    rows = weight.flatten(1) / magnitude.masked_fill(magnitude == 0, 1.0)[:, None]
    fraction = torch.ones_like(magnitude)
    error = _error(rows, 1.0, largest)
    for step in range(1, _COARSE):
        _keep_better(rows, torch.full_like(fraction, _RATIO**step), largest, fraction, error)
    coarse = fraction.clone()
    for factor in _FINE:
        _keep_better(rows, (coarse * factor).clamp_(max=1.0), largest, fraction, error)
    return safe_scale(magnitude * fraction, largest)


def quantize_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round a weight to integer codes.

    Args:
        weight: float32 of shape (out, ...), finite.
        scale: float32 of shape (out,).
        bits: Width of a code, 2 to 8.

    Returns:
        int8 of the shape of ``weight``.
    """
    largest = largest_weight_code(bits)
    return (weight.detach() / per_channel(scale, weight)).round_().clamp_(-largest, largest).to(torch.int8)


def dequantize_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 weights that ``codes`` (out, ...) stand for at ``scale`` (out,)."""
    return codes.to(torch.float32).mul_(per_channel(scale, codes))


def fake_quantize(x: Tensor, quantizer: AffineQuantizer) -> Tensor:
    """Round ``x`` to the values a quantizer can represent; infinity saturates, NaN stays NaN.

    Equal to ``(quantize(x) - zero_point) * scale``. `torch.fake_quantize_per_tensor_affine` is no substitute:
    it turns NaN into the lowest value, large positive numbers too, and is ten times slower on a CPU.

    Args:
        x: float32, any shape.
        quantizer: What to round to.

    Returns:
        float32 of the same shape, a new tensor.
    """
    return quantize_steps(x, quantizer).mul_(quantizer.scale)


def quantize(x: Tensor, quantizer: AffineQuantizer) -> Tensor:
    """The codes of ``x``, for integer kernels.

    Integers have no NaN: it becomes an arbitrary code, so a caller who must notice has to look at ``x``.

    Args:
        x: float32, any shape.
        quantizer: What to round to.

    Returns:
        uint8 of the same shape.
    """
    # 2^23 + code has the code in its lowest bits: six times as fast on a CPU as a cast from float32.
    shifted = quantize_steps(x, quantizer).add_((1 << 23) + quantizer.zero_point)
    return shifted.view(torch.int32).to(torch.uint8).bitwise_and_(largest_activation_code(quantizer.bits))


def quantize_steps(x: Tensor, quantizer: AffineQuantizer) -> Tensor:
    """`fake_quantize` in whole steps of the scale: float32 of the shape of ``x``, NaN stays NaN."""
    # Integer kernels multiply by the reciprocal too, so codes agree with theirs on every device.
    steps = x.detach().mul(1.0 / quantizer.scale).round_()
    return steps.clamp_(quantizer.lowest_step, quantizer.highest_step)


def _error(rows: Tensor, fraction: Tensor | float, largest: int) -> Tensor:
    """The root of the summed squared error of each row (magnitude 1) clipped at ``fraction``."""
    scale = fraction / largest
    rounded = (rows / scale).round_().clamp_(-largest, largest).mul_(scale)
    error: Tensor = torch.linalg.vector_norm(rounded.sub_(rows), dim=1)
    return error


def _keep_better(rows: Tensor, candidate: Tensor, largest: int, fraction: Tensor, error: Tensor) -> None:
    """Where ``candidate`` is better, write it into ``fraction`` and its error into ``error``."""
    found = _error(rows, candidate[:, None], largest)
    better = found < error
    torch.where(better, candidate, fraction, out=fraction)
    torch.where(better, found, error, out=error)


def _check_bits(bits: int) -> int:
    if not 2 <= bits <= 8:
        raise PrecisionError(f"{bits}-bit integers are not supported: choose from 2 to 8 bits")
    return bits
