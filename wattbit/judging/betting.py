"""A bound on the mean of paired differences of scores, such as IoU or token likelihood, at any sample size.

Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting", Journal of the
Royal Statistical Society B 86:1-27. For outcomes that are right or wrong, `wattbit.judging.noninferiority`
needs fewer samples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import DataError, GuardrailError
from wattbit.judging.noninferiority import first_beyond


def betting_upper_bound(differences: NDArray[np.float64], alpha: float) -> float:
    """An upper bound of the mean of paired differences in [-1, 1], valid at any number of samples.

    For a candidate mean m, a gambler who bets that the mean is smaller holds after t samples the capital
    ``K_t(m) = prod (1 + v_i (m - d_i))``, which at the true mean ever reaches 1 / alpha with probability at
    most alpha (Ville's inequality). The bound is the largest m whose capital never did. Bets are the
    paper's predictable plug-in, ``v_i = sqrt(2 log(1 / alpha) / (n s_(i-1)^2))``, with s^2 the running
    variance, capped so that capital stays above 0. As bets do not depend on m, K grows with m, and
    bisection finds the bound. Differences are first shuffled with a fixed seed: the bets assume that their
    order means nothing.

    Args:
        differences: Score of the reference minus score of the plan, shape (samples,), each in [-1, 1].
        alpha: The bound's chance to lie below the mean, 0 to 0.5 exclusive.

    Returns:
        The bound, a share from -1 to 1.

    Raises:
        DataError: If there is no difference, or one is NaN or out of range.
        GuardrailError: If alpha is out of range.
    """
    if not 0.0 < alpha < 0.5:
        raise GuardrailError(f"alpha {alpha!r} must lie between 0 and 0.5; 0.05 is usual")
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.all(np.abs(values) <= 1.0):
        raise DataError(
            f"differences of shape {values.shape} must be one value per sample, each between -1 and 1 and "
            "not NaN; bring scores to [0, 1] first"
        )
    values = np.random.default_rng(0).permutation(values)
    steps = np.arange(1, values.size + 1)
    means = np.cumsum(values) / (steps + 1)
    # The prior observation of mean 0 and variance 1 is the paper's, of mean 1/2 and variance 1/4 on [0, 1].
    variances = (1.0 + np.cumsum((values - means) ** 2)) / (steps + 1)
    known = np.concatenate(([1.0], variances[:-1]))
    bets = np.sqrt(2.0 * math.log(1.0 / alpha) / (values.size * known))

    def rejected(mean: float) -> bool:
        # m - d is at least -1 for m >= 0 and at least -2 below: half the bet keeps capital above 0 there.
        capped = np.minimum(bets, 0.75 if mean >= 0.0 else 0.375)
        return bool(np.cumsum(np.log1p(capped * (mean - values))).max() >= math.log(1.0 / alpha))

    return first_beyond(rejected, -1.0, 0.0) if rejected(0.0) else first_beyond(rejected, 0.0, 1.0)
