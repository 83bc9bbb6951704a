"""A confidence interval for a ratio of energies, from a few trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_MEDIAN_EFFICIENCY = math.sqrt(math.pi / 2)
"""The standard error of a normal sample's median is this much larger than its mean's."""


def ratio_interval(middle: float, ratios: Sequence[float], level: float) -> tuple[float, float]:
    """An interval around a median ratio.

    Ratios spread evenly on a logarithmic scale, so the interval is ``middle * exp(+-h)`` with
    ``h = t(level, n - 1) * sqrt(pi / 2) * s / sqrt(n)``: Student's interval over the logarithms, as wide as
    the median deserves, which one odd trial hardly moves.

    Args:
        middle: The median.
        ratios: Positive ratios, at least 2, one per trial.
        level: Confidence, above 0 and below 1.

    Returns:
        (low, high), both positive.
    """
    logs = [math.log(ratio) for ratio in ratios]
    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    half = t_quantile(level, len(logs) - 1) * _MEDIAN_EFFICIENCY * spread
    return middle * math.exp(-half), middle * math.exp(half)


def t_quantile(level: float, degrees: int) -> float:
    """The t below which ``|T|`` stays with probability ``level``, by bisection over `t_within`."""
    low, high = 0.0, 1.0
    while t_within(high, degrees) < level:
        high *= 2.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_within(middle, degrees) < level else (low, middle)
    return high


def t_within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's distribution with a whole number of ``degrees`` of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if odd:
        return 2.0 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
