"""Paired tests: is the drop of a plan below a margin, given both models' outcomes on the same samples?

`accepts` is the score test of Tango (1998), "Equivalence test and confidence interval for the difference in
proportions for the paired-sample design", Statistics in Medicine 17:891-908, or, where ``strict``, exact
bounds. Scores that are not right or wrong are bounded in `wattbit.judging.betting`. Needs numpy alone.

The score statistic is asymptotic. Where a plan loses few samples and repairs none (c = 0), it errs on the
wrong side: enumerating all outcomes finds plans whose drop is exactly the margin accepted with probability
up to 0.070 at a nominal 0.05, and 0.195 at a nominal 0.10. `accepts` therefore also asks for the exact
binomial test of net losses, ``P(Bin(n, margin) <= b - c) <= alpha``, which is the exact test for c = 0 and
seldom binds elsewhere. Where a plan repairs more than it loses, that test says nothing, and the score test
alone reached 0.061 (44 samples, a margin of 2 percentage points, 12 % disagreement): there the statistic gets
a continuity correction of a fifth of a sample. With both, enumeration over 25 to 6,000 samples, margins from
0.1 to 10 percentage points and disagreement up to 35 % finds at most 0.055 at a nominal 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import DataError, GuardrailError

_NORMAL = NormalDist()
_MOST_SAMPLES = 10**8
"""Above this many samples a tolerance counts as out of reach."""
_CONTINUITY = 0.2
"""Continuity correction where a plan repairs more than it loses, samples; see the module's docstring."""


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """What two models got right and wrong on the same samples.

    Attributes:
        samples: Number of samples, n.
        reference_only: Samples the reference got right and the plan got wrong, b.
        plan_only: Samples the plan got right and the reference got wrong, c.

    Raises:
        DataError: If there is no sample, or the counts cannot be.
    """

    samples: int
    reference_only: int
    plan_only: int

    def __post_init__(self) -> None:
        lost, gained = self.reference_only, self.plan_only
        if self.samples < 1 or lost < 0 or gained < 0 or lost + gained > self.samples:
            raise DataError(
                f"{lost} lost and {gained} gained of {self.samples} samples cannot be; "
                "counts are 0 or more, together at most the number of samples, which is at least 1"
            )

    @classmethod
    def from_correct(
        cls, reference_correct: NDArray[np.bool_], plan_correct: NDArray[np.bool_]
    ) -> PairedCounts:
        """Count from what each model got right, two boolean arrays of shape (samples,).

        Raises:
            DataError: If the arrays are empty, not boolean, or differ in shape.
        """
        reference, plan = np.asarray(reference_correct), np.asarray(plan_correct)
        if reference.dtype != np.bool_ or plan.dtype != np.bool_:
            raise DataError(
                f"outcomes are {reference.dtype} and {plan.dtype}, must be bool; "
                "compare predictions with labels first"
            )
        if reference.ndim != 1 or reference.shape != plan.shape or not reference.size:
            raise DataError(
                f"outcomes of shapes {reference.shape} and {plan.shape} cannot be paired; "
                "both must have shape (samples,), with at least one sample"
            )
        return cls(int(reference.size), int((reference & ~plan).sum()), int((~reference & plan).sum()))

    @property
    def drop_pp(self) -> float:
        """The observed drop, 100 (b - c) / n percentage points."""
        return 100.0 * (self.reference_only - self.plan_only) / self.samples

    @property
    def swapped(self) -> PairedCounts:
        """The counts with the roles of reference and plan exchanged."""
        return PairedCounts(self.samples, self.plan_only, self.reference_only)

    def scaled(self, samples: int) -> PairedCounts:
        """Counts at the same rates in another number of samples, rounded to the plan's disadvantage."""
        lost = min(samples, -(-self.reference_only * samples // self.samples))
        gained = self.plan_only * samples // self.samples
        return PairedCounts(samples, lost, min(gained, samples - lost))


def score_z(counts: PairedCounts, margin: float, continuity: float = 0.0) -> float:
    """Tango's score statistic for a drop of ``margin``; far below 0 speaks for a smaller drop.

    With the shares lost and gained constrained to differ by the margin, q is the maximum-likelihood share
    gained: the larger root of ``2n q^2 + (-b - c + (2n - b + c) margin) q - c margin (1 - margin) = 0``. Then
    ``z = (b - c - n margin) / sqrt(n (2q + margin (1 - margin)))``.

    Args:
        counts: The paired counts.
        margin: A share from -1 to 1, such as 0.01 for one percentage point.
        continuity: Samples by which b - c is made larger.

    Returns:
        z, standard normal for large n if the drop is the margin; infinite where the outcome is impossible.

    Raises:
        GuardrailError: If the margin is out of range.
    """
    if not -1.0 <= margin <= 1.0:
        raise GuardrailError(
            f"margin {margin!r} must lie between -1 and 1; give a share, not percentage points"
        )
    if margin < 0.0:
        return -score_z(counts.swapped, -margin, -continuity)
    n, lost, gained = counts.samples, counts.reference_only, counts.plan_only
    linear = -lost - gained + (2 * n - lost + gained) * margin
    constant = -gained * margin * (1.0 - margin)
    root = math.sqrt(linear * linear - 8.0 * n * constant)
    # Of the two equal forms of the root, the one in which nothing cancels.
    share = -2.0 * constant / (linear + root) if linear > 0.0 else (root - linear) / (4.0 * n)
    variance = n * (2.0 * share + margin * (1.0 - margin))
    excess = lost - gained + continuity - n * margin
    if variance <= 0.0:
        return 0.0 if excess == 0.0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def p_value(counts: PairedCounts, margin: float) -> float:
    """The smallest level at which `accepts` (not strict) finds the drop to be below ``margin``.

    It is the larger of the score test's and the exact binomial test's p-value, or, where more is repaired
    than lost, that of the score test with a continuity correction; see the module's docstring.

    Raises:
        GuardrailError: If the margin is not above 0 and at most 1.
    """
    _require(margin)
    net_losses = counts.reference_only - counts.plan_only
    if net_losses < 0:
        return _NORMAL.cdf(score_z(counts, margin, _CONTINUITY))
    return max(_NORMAL.cdf(score_z(counts, margin)), _binomial_tail(net_losses, counts.samples, margin))


def accepts(counts: PairedCounts, margin: float, alpha: float, strict: bool = False) -> bool:
    """Whether the drop is shown to be below ``margin`` at level ``alpha``.

    Args:
        counts: The paired counts.
        margin: The tolerance as a share, above 0 and at most 1.
        alpha: The level of the test, 0 to 0.5 exclusive.
        strict: True for `clopper_pearson_accepts`.

    Raises:
        GuardrailError: If margin or alpha are out of range.
    """
    if strict:
        return clopper_pearson_accepts(counts, margin, alpha)
    _require(margin, alpha)
    return p_value(counts, margin) <= alpha


def clopper_pearson_accepts(counts: PairedCounts, margin: float, alpha: float) -> bool:
    """Whether exact bounds show the drop to be below ``margin``; false acceptance never exceeds ``alpha``.

    The share lost is bounded from above and the share gained from below (Clopper and Pearson 1934), each at
    alpha / 2; by Bonferroni's inequality their difference bounds the drop at level alpha.

    Raises:
        GuardrailError: If margin or alpha are out of range.
    """
    _require(margin, alpha)
    return 100.0 * margin > upper_bound_pp(counts, alpha, strict=True)


def upper_bound_pp(counts: PairedCounts, alpha: float, strict: bool = False) -> float:
    """The smallest tolerance that ``counts`` are accepted for, percentage points: an upper bound of the drop.

    Negative where the plan is surely better.

    Raises:
        GuardrailError: If alpha is out of range.
    """
    _require(alpha=alpha)
    n, lost, gained = counts.samples, counts.reference_only, counts.plan_only
    if strict:
        # The lower bound of c is one minus the upper bound of n - c.
        most_lost = _binomial_upper(lost, n, alpha / 2.0)
        least_gained = 1.0 - _binomial_upper(n - gained, n, alpha / 2.0)
        return 100.0 * (most_lost - least_gained)
    bound = score_upper_bound(counts, alpha, _CONTINUITY if lost < gained else 0.0)
    if lost >= gained and _binomial_tail(lost - gained, n, bound) > alpha:
        bound = _binomial_upper(lost - gained, n, alpha)
    return 100.0 * bound


def lower_bound_pp(counts: PairedCounts, alpha: float, strict: bool = False) -> float:
    """The mirror of `upper_bound_pp`: a lower bound of the drop at level ``alpha``, percentage points."""
    return -upper_bound_pp(counts.swapped, alpha, strict)


def interval_pp(counts: PairedCounts, alpha: float = 0.05) -> tuple[float, float]:
    """The two-sided score interval of the drop at confidence 1 - alpha, percentage points."""
    return lower_bound_pp(counts, alpha / 2), upper_bound_pp(counts, alpha / 2)


def score_upper_bound(counts: PairedCounts, alpha: float, continuity: float = 0.0) -> float:
    """The upper end of Tango's score interval as a share: where `score_z` falls to the alpha quantile.

    Raises:
        GuardrailError: If alpha is out of range.
    """
    _require(alpha=alpha)
    quantile = _NORMAL.inv_cdf(alpha)
    return first_beyond(
        lambda margin: score_z(counts, margin, continuity) <= quantile, counts.drop_pp / 100.0, 1.0
    )


def minimum_samples(margin: float, alpha: float, strict: bool = False) -> int:
    """The fewest samples that can certify ``margin``: as many as needed if the models never disagree.

    Raises:
        GuardrailError: If margin or alpha are out of range.
    """
    _require(margin, alpha)
    if margin == 1.0:
        return 1
    # With b = c = 0, z^2 is n margin / (1 - margin), and exact tests accept at (1 - margin)^n <= alpha.
    by_score = _NORMAL.inv_cdf(alpha) ** 2 * (1.0 - margin) / margin
    exact = math.log(alpha / 2.0 if strict else alpha) / math.log1p(-margin)
    samples = max(1, math.floor(exact if strict else max(by_score, exact)))
    while not accepts(PairedCounts(samples, 0, 0), margin, alpha, strict):
        samples += 1
    return samples


def samples_to_certify(counts: PairedCounts, margin: float, alpha: float, strict: bool = False) -> int | None:
    """About how many samples would certify ``margin`` if samples kept being lost and gained at these rates.

    Returns:
        A number of samples at which the same rates are accepted, at most about 2 % above the smallest; None
        if the observed drop is the margin or more, or so close that a hundred million samples would not do.

    Raises:
        GuardrailError: If margin or alpha are out of range.
    """
    _require(margin, alpha)
    if counts.drop_pp >= 100.0 * margin:
        return None

    accepted = accepts(counts, margin, alpha, strict)
    samples = max(minimum_samples(margin, alpha, strict), 1 if accepted else counts.samples + 1)
    while not accepts(counts.scaled(samples), margin, alpha, strict):
        samples += max(1, samples // 50)
        if samples > _MOST_SAMPLES:
            return None
    return min(samples, counts.samples) if accepted else samples


def first_beyond(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the argument between ``low`` and ``high`` from which on ``beyond`` holds, else ``high``."""
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


def _require(margin: float = 0.5, alpha: float = 0.05) -> None:
    if not 0.0 < margin <= 1.0:
        raise GuardrailError(
            f"margin {margin!r} must be above 0 and at most 1; give a share, not percentage points"
        )
    if not 0.0 < alpha < 0.5:
        raise GuardrailError(f"alpha {alpha!r} must lie between 0 and 0.5; 0.05 is usual")


def _binomial_upper(successes: int, trials: int, alpha: float) -> float:
    """The Clopper-Pearson upper bound: the share at which so few successes have probability ``alpha``."""
    if successes >= trials:
        return 1.0
    return first_beyond(lambda p: _binomial_tail(successes, trials, p) <= alpha, successes / trials, 1.0)


def _binomial_tail(successes: int, trials: int, p: float) -> float:
    """P(Bin(trials, p) <= successes), summed downwards; terms 40 standard deviations out are left out."""
    if successes >= trials or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    spread = 40.0 * math.sqrt(trials * p * (1.0 - p)) + 100.0
    lowest = max(0, math.floor(min(successes, trials * p) - spread))
    log_first = (
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(p)
        + (trials - successes) * math.log1p(-p)
    )
    # Consecutive terms: pmf(k - 1) / pmf(k) = k (1 - p) / ((trials - k + 1) p).
    k = np.arange(successes, lowest, -1, dtype=np.float64)
    ratios = np.log(k / (trials - k + 1.0)) + (math.log1p(-p) - math.log(p))
    logs = log_first + np.concatenate(([0.0], np.cumsum(ratios)))
    return min(1.0, float(np.exp(logs).sum()))
