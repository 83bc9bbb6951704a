"""A surrogate of the drop, which predicts it from the plans evaluated so far.

Two Gaussian processes in a row, after Le Gratiet and Garnier (2014), "Recursive co-kriging model for design
of computer experiments with multiple levels of fidelity", Int. J. Uncertainty Quantification 4:365-386. The
first predicts the logarithm of the output's divergence, which is known without noise for every plan run. The
second predicts the drop, which is counted in few samples, from the divergence. Both learn corrections to the
summed sensitivities of the profile; `agents.surrogate.gp_covariance` lists them.

Drops are modelled as ``z = asinh(drop / 1 pp)``: near 0 a drop may be negative, and beyond a point or so its
logarithm is what adds up. The noise of a drop is that of its paired counts, but plans share their samples,
so how much of it differs from plan to plan is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtr

from agents.surrogate.gaussian_process import GaussianProcess, WeightPrior, fit_process
from agents.surrogate.gp_covariance import FLOOR_NATS, KERNELS, PlanFeatures
from agents.surrogate.plan_arrays import Indices, PlanArrays
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from wattbit.features import Floats
from wattbit.profile import ModelProfile

_OBSERVED = SearchGate(0.5)
# Rows predicted at once: keeps memory bounded.
_CHUNK = 1024
# A drop is modelled to lie within this of its link even where the link is flat.
_LEAST_SLOPE = 0.02


class DropSurrogate:
    """Fits surrogates for one model.

    Args:
        profile: The model's profile.
        gate: Judges the drop, and the judged drop is predicted; None: the drop as observed.
    """

    def __init__(self, profile: ModelProfile, gate: SearchGate | None = None) -> None:
        self._arrays = PlanArrays.of(profile)
        self._gate = gate or _OBSERVED

    @property
    def arrays(self) -> PlanArrays:
        """The profile as tables."""
        return self._arrays

    def fit(self, outcomes: Sequence[Outcome], previous: FittedSurrogate | None = None) -> FittedSurrogate:
        """Fit to ``outcomes``; with none, the prior.

        Args:
            outcomes: The outcomes so far, each plan once.
            previous: An earlier fit, whose kernel weights are kept, which is much faster; None: learn them.

        Raises:
            PlanError: If an outcome is for another model.
        """
        features = PlanFeatures.of(self._arrays, self._arrays.indices([o.plan for o in outcomes]))
        kernels = features.kernels(features)
        log_divergence = np.log(np.array([o.divergence for o in outcomes]) + FLOOR_NATS)
        drops_pp = np.array(self._gate.bounds_pp(outcomes))
        variances = np.array([_variance_pp2(o) for o in outcomes])

        divergence = fit_process(
            kernels,
            log_divergence - features.log_nats,
            np.zeros(len(outcomes)),
            _DIVERGENCE_PRIOR,
            None if previous is None else previous.divergence.log_weights,
        )
        noise = variances / (1.0 + drops_pp**2)
        link = _DropLink.fit(log_divergence, drops_pp, noise)
        slopes = link.slope(log_divergence) + _LEAST_SLOPE
        residual = fit_process(
            kernels * slopes[:, None] * slopes,
            np.arcsinh(drops_pp) - link.value(log_divergence),
            noise,
            _RESIDUAL_PRIOR,
            None if previous is None else previous.residual.log_weights,
        )
        return FittedSurrogate(
            self._arrays,
            features.single,
            slopes,
            divergence,
            link,
            residual,
            _noise_line(drops_pp, variances),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedSurrogate:
    """A surrogate fitted to some outcomes.

    Attributes:
        arrays: The profile as tables.
        features: Features of the plans it was fitted to, float32.
        slopes: Slope of the link at each of them, (points,).
        divergence: Process of log(divergence / sensitivity).
        link: Divergence to drop.
        residual: Process of what the link leaves of the drop, by its slope.
        noise_line: Variance of a counted drop (pp^2) at a drop of 0, and what each pp adds.
    """

    arrays: PlanArrays
    features: PlanFeatures
    slopes: Floats
    divergence: GaussianProcess
    link: _DropLink
    residual: GaussianProcess
    noise_line: tuple[float, float]

    def predict(self, indices: Indices) -> tuple[Floats, Floats]:
        """Predicted (judged) drop of plans and the standard deviation of the drop that will be counted.

        Args:
            indices: Plans, (plans, layers).

        Returns:
            Median and standard deviation around it, percentage points, each (plans,).
        """
        mean, std = self._predict(indices)
        return np.sinh(mean), std * np.cosh(mean)

    def feasibility(self, indices: Indices, tolerances_pp: Sequence[float]) -> Floats:
        """Probability that the (judged) drop will be at most each tolerance, (plans, tolerances)."""
        mean, std = self._predict(indices)
        probability: Floats = ndtr((np.arcsinh(np.asarray(tolerances_pp)) - mean[:, None]) / std[:, None])
        return probability

    def _predict(self, indices: Indices) -> tuple[Floats, Floats]:
        """Mean and standard deviation of z, each (plans,)."""
        parts = [self._predict_chunk(indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK)]
        if not parts:
            return np.empty(0), np.empty(0)
        mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mean, np.sqrt(variance)

    def _predict_chunk(self, indices: Indices) -> tuple[Floats, Floats]:
        features = PlanFeatures.of(self.arrays, indices).single
        kernels, own = features.kernels(self.features), features.own_kernels()

        weights = self.divergence.kernel_weights
        mean, variance = self.divergence.predict(np.tensordot(weights, kernels, axes=1), weights @ own)
        log_divergence = mean + features.log_nats
        steepness = self.link.slope(log_divergence)
        doubt = steepness**2 * (variance + self.divergence.nugget)

        weights, slopes = self.residual.kernel_weights, steepness + _LEAST_SLOPE
        cross = np.tensordot(weights, kernels, axes=1) * slopes[:, None] * self.slopes
        mean, variance = self.residual.predict(cross, (weights @ own) * slopes**2)
        mean = mean + self.link.value(log_divergence)
        drops_pp = np.sinh(mean)
        at_zero, by_pp = self.noise_line
        noise = (at_zero + by_pp * np.maximum(drops_pp, 0.0)) / (1.0 + drops_pp**2)
        return mean, variance + doubt + self.residual.nugget + self.residual.noise_weight * noise


@dataclass(frozen=True, slots=True)
class _DropLink:
    """What drop a divergence means: ``top * (1 - exp(-exp(scale + power * log divergence) / top))``.

    Attributes:
        scale: Logarithm of the drop (pp) at 1 nat, if it did not saturate.
        power: How fast the drop grows with divergence.
        top_pp: The most that can be lost.
    """

    scale: float
    power: float
    top_pp: float

    @classmethod
    def fit(cls, log_divergence: Floats, drops_pp: Floats, noise: Floats) -> _DropLink:
        """Least squares in z, with weak priors: 20 pp a nat, in proportion."""
        top_pp = 1.02 * max(20.0, float(drops_pp.max(initial=0.0)))
        targets, spread = np.arcsinh(drops_pp), np.sqrt(noise + 0.05)

        def cost(x: Floats) -> float:
            off = (cls(float(x[0]), float(x[1]), top_pp).value(log_divergence) - targets) / spread
            return 0.5 * float(off @ off + ((x[0] - 3.0) / 2.0) ** 2 + ((x[1] - 1.0) / 0.3) ** 2)

        found = minimize(cost, [3.0, 1.0], method="L-BFGS-B", bounds=[(-5.0, 9.0), (0.3, 2.0)])
        return cls(float(found.x[0]), float(found.x[1]), top_pp)

    def value(self, log_divergence: Floats) -> Floats:
        """The z that each divergence means."""
        value: Floats = np.arcsinh(self._drops_pp(log_divergence)[0])
        return value

    def slope(self, log_divergence: Floats) -> Floats:
        """How fast z grows with the logarithm of divergence."""
        drops_pp, unlimited = self._drops_pp(log_divergence)
        slope: Floats = self.power * unlimited * np.exp(-unlimited / self.top_pp) / np.sqrt(1.0 + drops_pp**2)
        return slope

    def _drops_pp(self, log_divergence: Floats) -> tuple[Floats, Floats]:
        unlimited = np.exp(np.clip(self.scale + self.power * log_divergence, -40.0, 40.0))
        return -self.top_pp * np.expm1(-unlimited / self.top_pp), unlimited


def _prior(**means: float) -> WeightPrior:
    """Priors of the kernels' weights, given as variances of the logarithm of the drop, by name."""
    mean = [math.log(means.get(name, 0.05)) for name in KERNELS]
    # Half of the counting noise differs between plans; a nugget of 3 % of the drop.
    return WeightPrior(
        np.array([*mean, math.log(0.5), math.log(1e-3)]), np.array([1.5] * len(mean) + [1.0, 2.0])
    )


_DIVERGENCE_PRIOR = _prior(constant=0.3, trend=0.003)
# The link has a trend already.
_RESIDUAL_PRIOR = _prior(trend=1e-4)


def _variance_pp2(outcome: Outcome) -> float:
    """Variance of a drop from its paired counts, pp^2; one disagreement is added, so that none is certain."""
    counts = outcome.counts
    lost, gained, samples = counts.reference_only, counts.plan_only, counts.samples
    return 1e4 * (lost + gained + 1.0 - (lost - gained) ** 2 / samples) / samples**2


def _noise_line(drops_pp: Floats, variances: Floats) -> tuple[float, float]:
    """Variance of a counted drop at 0 pp and its growth by pp, by least squares, neither below 0."""
    seen = drops_pp < 10.0
    if not seen.any():
        return 0.05, 0.1
    x, y = np.maximum(drops_pp[seen], 0.0), variances[seen]
    by_pp = max(0.0, float(np.cov(x, y)[0, 1] / max(float(x.var(ddof=1)), 1e-9))) if len(x) > 1 else 0.0
    return max(float(y.mean() - by_pp * x.mean()), float(y.min())), by_pp
