"""Gaussian process regression on a sum of fixed kernels, whose weights are all that is learned.

The weights maximise the marginal likelihood times a log-normal prior (Rasmussen and Williams, "Gaussian
Processes for Machine Learning", 2006, sections 2.2 and 5.4.1; gradients by their equation 5.9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from agents.surrogate.gp_covariance import Reals
from wattbit.features import Floats

# Keeps the matrix well conditioned where two rows are nearly equal and noise is 0.
_JITTER = 1e-6
# Points that the weights are learned from; more cost time by the cube and change them little.
_MOST_POINTS = 160
_ITERATIONS = 30
# Weights between e^-14 and e^5.
_BOUNDS = (-14.0, 5.0)


@dataclass(frozen=True, slots=True, eq=False)
class WeightPrior:
    """Log-normal priors of the weights: of each kernel, of the given noise variance, of the nugget.

    Attributes:
        mean: Means of the logarithms, (kernels + 2,).
        std: Their standard deviations, (kernels + 2,).
    """

    mean: Floats
    std: Floats


@dataclass(frozen=True, slots=True, eq=False)
class GaussianProcess:
    """A fitted process.

    Attributes:
        log_weights: Logarithms of the weights, (kernels + 2,): kernels, noise, nugget.
        factor: Lower Cholesky factor of the training covariance, (points, points).
        coefficients: Inverse training covariance times targets, (points,).
    """

    log_weights: Floats
    factor: Floats
    coefficients: Floats

    @property
    def kernel_weights(self) -> Floats:
        """Weight of each kernel, (kernels,)."""
        weights: Floats = np.exp(self.log_weights[:-2])
        return weights

    @property
    def noise_weight(self) -> float:
        """How much of the noise variance given is there."""
        return float(np.exp(self.log_weights[-2]))

    @property
    def nugget(self) -> float:
        """Variance that no kernel explains, beyond the noise."""
        return float(np.exp(self.log_weights[-1]))

    def predict(self, cross: Reals, own: Reals) -> tuple[Floats, Floats]:
        """Mean and variance, each (rows,), without noise and nugget.

        Args:
            cross: Weighted kernel between new rows and training points, (rows, points).
            own: Weighted kernel of each new row with itself, (rows,).
        """
        shrunk = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        variance = own - np.einsum("ij,ij->j", shrunk, shrunk)
        return cross @ self.coefficients, np.maximum(variance, 1e-12)


def fit_process(
    kernels: Reals, targets: Floats, noise: Floats, prior: WeightPrior, start: Floats | None = None
) -> GaussianProcess:
    """Learn the weights and condition on all points.

    Args:
        kernels: Each kernel between all pairs of points, (kernels, points, points).
        targets: What is observed, mean 0 by the prior, (points,).
        noise: Variance of the noise of each target as far as known, (points,).
        prior: Priors of the weights.
        start: Weights to keep, from an earlier fit (`GaussianProcess.log_weights`); None: learn them.
    """
    weights = _learn(kernels, targets, noise, prior) if start is None else start
    factor = cholesky(_covariance(kernels, noise, np.exp(weights)), lower=True, check_finite=False)
    return GaussianProcess(weights, factor, cho_solve((factor, True), targets, check_finite=False))


def _learn(kernels: Reals, targets: Floats, noise: Floats, prior: WeightPrior) -> Floats:
    count = len(targets)
    if count > _MOST_POINTS:
        chosen = np.linspace(0, count - 1, _MOST_POINTS).round().astype(np.intp)
        kernels, targets, noise = kernels[:, chosen[:, None], chosen], targets[chosen], noise[chosen]
    if not count:
        return prior.mean

    def cost(log_weights: Floats) -> tuple[float, Floats]:
        """Negative logarithm of likelihood times prior, up to a constant, and its gradient."""
        weights = np.exp(log_weights)
        factor = cholesky(_covariance(kernels, noise, weights), lower=True, check_finite=False)
        inverse = cho_solve((factor, True), np.eye(len(targets)), check_finite=False)
        coefficients = inverse @ targets
        off = (log_weights - prior.mean) / prior.std
        value = 0.5 * (targets @ coefficients + off @ off) + np.log(np.diag(factor)).sum()
        misfit = inverse - np.outer(coefficients, coefficients)
        by_kernel = kernels.reshape(len(kernels), -1) @ misfit.ravel()
        traces = np.concatenate([by_kernel, [np.diag(misfit) @ noise, np.trace(misfit)]])
        return float(value), 0.5 * weights * traces + off / prior.std

    found = minimize(
        cost,
        prior.mean,
        jac=True,
        method="L-BFGS-B",
        bounds=[_BOUNDS] * len(prior.mean),
        options={"maxiter": _ITERATIONS, "ftol": 1e-6},
    )
    return np.asarray(found.x, np.float64)


def _covariance(kernels: Reals, noise: Floats, weights: Floats) -> Floats:
    covariance = np.tensordot(weights[:-2], kernels, axes=1)
    covariance[np.diag_indices(len(noise))] += weights[-2] * noise + weights[-1] + _JITTER
    return covariance
