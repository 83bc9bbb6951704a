"""The choice of an activation's range: clip what is rare if that makes the rest more exact.

The squared error of a quantizer over a sorted sample needs no look at single values: between two rounding
thresholds all values get one level, and running sums tell their count and sum. So hundreds of candidate
ranges are compared at the cost of a few binary searches each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wattbit.errors import DataError
from wattbit.numerics.floats import SMALLEST_SCALE
from wattbit.numerics.integers import ActivationRange, AffineQuantizer, largest_activation_code

_SMALLEST_FRACTION = 0.01
_COARSE_ONE_SIDED = 64
_COARSE_TWO_SIDED = 20  # on each side
_FINE = 7  # on each side, in every round of refinement
_ROUNDS = 3


def activation_quantizer(sample: Tensor, bits: int) -> AffineQuantizer:
    """The quantizer that minimises the squared error over a sample of a layer's input.

    The ends of the sample's range are clipped independently, to 0.01 of it at the least; a sample without
    negative (or positive) values keeps that end at 0. The unclipped range is among the candidates.

    Args:
        sample: float32, any shape, at least one value; tens of thousands are plenty.
        bits: Width of a code, 2 to 8.

    Raises:
        DataError: If the sample is empty.
        ModelError: If it holds NaN or infinity.
        PrecisionError: If ``bits`` is not from 2 to 8.
    """
    if sample.numel() == 0:
        raise DataError("no activations to calibrate on: give at least one calibration sample")
    span = ActivationRange.of(sample)
    if span.magnitude == 0.0:
        return AffineQuantizer.spanning(span, bits)
    error = _SampleError(sample, bits)
    two_sided = span.low < 0.0 < span.high
    points = _COARSE_TWO_SIDED if two_sided else _COARSE_ONE_SIDED
    ratio = _SMALLEST_FRACTION ** (1 / (points - 1))
    factors = ratio ** torch.arange(points, dtype=torch.float64)
    best = torch.tensor([span.low, span.high], dtype=torch.float64)
    lowest = torch.tensor(torch.inf, dtype=torch.float64)
    for _ in range(1 + _ROUNDS):
        ranges = _ranges(best, factors, span)
        errors = error(ranges)
        index = errors.argmin()
        if errors[index] < lowest:
            best, lowest = ranges[index], errors[index]
        # Next, between the neighbours of the best.
        factors = ratio ** torch.linspace(-1, 1, _FINE, dtype=torch.float64)
        ratio **= 2 / (_FINE - 1)
    return AffineQuantizer.spanning(ActivationRange(best[0].item(), best[1].item()), bits)


def _ranges(best: Tensor, factors: Tensor, span: ActivationRange) -> Tensor:
    """Pairs of a low and a high end, ``best`` times a factor and inside ``span``, as (candidates, 2)."""
    low = (best[0] * factors).clamp_(min=span.low) if span.low < 0.0 else best[:1]
    high = (best[1] * factors).clamp_(max=span.high) if span.high > 0.0 else best[1:]
    return torch.cartesian_prod(low, high)


class _SampleError:
    """The squared error of rounding a sample with the quantizer spanning a range, up to a constant."""

    def __init__(self, sample: Tensor, bits: int) -> None:
        self._values = sample.detach().flatten().cpu().sort().values.to(torch.float64)
        zero = self._values.new_zeros(1)
        self._sums = torch.cat([zero, self._values.cumsum(0)])  # of the values below each index
        self._largest = largest_activation_code(bits)

    def __call__(self, ranges: Tensor) -> Tensor:
        """Errors of shape (candidates,) for ranges of shape (candidates, 2)."""
        # The quantizer as `AffineQuantizer.spanning` makes it.
        scale = ((ranges[:, 1:] - ranges[:, :1]) / self._largest).clamp_(min=SMALLEST_SCALE)
        zero_point = (-ranges[:, :1] / scale).round_().clamp_(0, self._largest)
        levels = (torch.arange(self._largest + 1) - zero_point) * scale
        inner = torch.searchsorted(self._values, levels[:, :-1] + scale / 2)
        edges = F.pad(F.pad(inner, (1, 0)), (0, 1), value=len(self._values))
        # Sum of (value - level)^2, without the values' own squares, which are the same for every range.
        return (edges.diff() * levels**2 - 2.0 * self._sums[edges].diff() * levels).sum(1)
