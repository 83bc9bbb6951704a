"""A gate that chooses a plan by all plans' outcomes: the drop it is likely to have on data not seen yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from wattbit.errors import ConfigError
from wattbit.features import Floats

# Plans with larger drops say little about those near a tolerance.
_MOST_PP = 15.0
# Fewer plans than this do not show how drop depends on divergence.
_LEAST_PLANS = 8
# Exponents that are tried for the relation between divergence and drop.
_EXPONENTS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
# Disagreements that a plan's divergence predicts count as much as this many that were seen.
_PRIOR = 20.0
# Outputs that differ by less are alike.
_LEAST_NATS = 1e-6
# Standard deviation of a plan's true drop around the relation, as a share of it.
_SPREAD = 0.3
# What the other plans cannot tell, in variances of a plan's drop: the error that all plans share, because
# they ran on the same samples, and that of as many fresh samples.
_UNSHARED = 2.0


@dataclass(frozen=True, slots=True)
class PooledGate(SearchGate):
    """Chooses plans by a bound on the drop that fresh data will show.

    The divergence of a plan's output is known far more precisely than its drop, and says what drop to
    expect: a power of it, fitted to all plans that ran. A plan's drop is shrunk towards that, by as much as
    its own samples leave open (empirical Bayes with normal errors), which takes out the luck of the luckiest
    of many. The bound adds, at level alpha, what is left uncertain and the noise of the data that the plan
    will be judged by.

    A plan that is judged by itself, as in an episode's reward, is judged as `SearchGate` does.

    Attributes:
        alpha: Level of the bound of a plan that is judged by itself.
        fresh_alpha: Chance that fresh data show a drop above the bound by which plans are chosen; 0.5 judges
            the shrunk drop.

    Raises:
        ConfigError: If a level is not above 0 and at most 0.5.
    """

    fresh_alpha: float = 0.2

    def __post_init__(self) -> None:
        SearchGate.__post_init__(self)
        if not 0.0 < self.fresh_alpha <= 0.5:
            raise ConfigError(
                f"gate fresh_alpha is {self.fresh_alpha}, must be above 0 and at most 0.5; 0.2 is the default"
            )

    def bounds_pp(self, outcomes: Sequence[Outcome]) -> list[float]:
        """The drop that is judged of each plan, in percentage points, given all of them.

        Where they are too few to learn from, each is judged by its own samples, at level ``fresh_alpha``.
        """
        if not outcomes:
            return []
        divergence = np.maximum([o.divergence for o in outcomes], 0.0)
        drop_pp = np.array([o.drop_pp for o in outcomes])
        variance = _variances_pp2(outcomes, divergence)
        telling = (divergence > 0.0) & (drop_pp < _MOST_PP)
        if telling.sum() < _LEAST_PLANS:
            return SearchGate(self.fresh_alpha).bounds_pp(outcomes)
        exponent, scale = _relation(divergence[telling], drop_pp[telling], variance[telling])
        expected_pp = scale * divergence**exponent
        # A spread of 0 would leave no weight to the plan's own samples, and divide by 0.
        spread = np.maximum(_SPREAD * expected_pp, 1e-4) ** 2
        posterior = 1.0 / (1.0 / variance + 1.0 / spread)
        mean_pp = posterior * (drop_pp / variance + expected_pp / spread)
        quantile = -NormalDist().inv_cdf(self.fresh_alpha)
        bounds: list[float] = (mean_pp + quantile * np.sqrt(posterior + _UNSHARED * variance)).tolist()
        return bounds


def _variances_pp2(outcomes: Sequence[Outcome], divergence: Floats) -> Floats:
    """Variance of each drop seen, squared percentage points, (plans,).

    It is the share of samples on which plan and reference disagree about being right, over the samples. That
    share grows with the size of the output's error, of which the divergence is the square; a plan's own count
    is averaged with what this relation expects, so that no disagreement seen does not mean none to come.
    """
    samples = np.array([o.counts.samples for o in outcomes], float)
    disagreed = np.array([o.counts.reference_only + o.counts.plan_only for o in outcomes], float)
    net = np.array([o.counts.reference_only - o.counts.plan_only for o in outcomes], float)
    size = np.sqrt(divergence + _LEAST_NATS)
    expected = samples * size * ((disagreed.sum() + 0.5) / (samples * size).sum())
    share = (disagreed + _PRIOR) / (samples * (1.0 + _PRIOR / expected))
    variances: Floats = 1e4 * np.maximum(share - (net / samples) ** 2, _LEAST_NATS) / samples
    return variances


def _relation(divergence: Floats, drop_pp: Floats, variance: Floats) -> tuple[float, float]:
    """Exponent and scale of the most likely relation ``drop = scale * divergence ** exponent``.

    For each exponent the scale is found by weighted least squares; its weights depend on it, and settle in a
    few rounds.
    """
    best = (-np.inf, 1.0, 1.0)
    for exponent in _EXPONENTS:
        power = divergence**exponent
        total, scale = variance, 0.0
        for _ in range(5):
            scale = max(1e-9, float((drop_pp * power / total).sum() / (power * power / total).sum()))
            total = variance + (_SPREAD * scale * power) ** 2
        likelihood = -0.5 * float((np.log(total) + (drop_pp - scale * power) ** 2 / total).sum())
        best = max(best, (likelihood, exponent, scale))
    return best[1], best[2]
