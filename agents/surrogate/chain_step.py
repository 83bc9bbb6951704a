"""A long step over plans: from one plan straight to the best far away, as far as neighbours tell.

Around a plan, the predicted drop of every change of one layer and of every change of two neighbours is known.
If changes further apart add up, the cheapest plan within a tolerance is a shortest path under a limit, which
`envs.chain` finds exactly. Many layers change at once, where climbing would have to pass through plans that
are worse.
"""

from __future__ import annotations

import numpy as np

from agents.surrogate.drop_surrogate import FittedSurrogate
from agents.surrogate.plan_arrays import Indices, PlanArrays
from envs.chain import cheapest_chain
from wattbit.features import Floats

AIMS = np.array([0.85, 0.92, 0.96, 0.99, 1.01, 1.04, 1.1])
"""Predicted drops worth aiming at, as shares of a tolerance."""

# Steps that a drop is counted in, up to the limit.
_STEPS = 400
# More than any plan costs, as a share of the reference energy.
_FORBIDDEN = 1e6


def chain_steps(surrogate: FittedSurrogate, start: Indices, limits_pp: Floats) -> Indices:
    """For each limit the cheapest plan whose predicted drop, linearised at ``start``, is at most that.

    Args:
        surrogate: Predicts drops.
        start: A plan (layers,).
        limits_pp: Limits of the predicted drop, above 0, percentage points.

    Returns:
        Plans, (at most one a limit, layers); fewer where no plan is within a limit.
    """
    arrays = surrogate.arrays
    base_pp, steps_pp = _linearised(surrogate, start)
    energy = _energy(arrays)
    found = []
    for limit_pp in limits_pp:
        unit_pp = limit_pp / _STEPS
        # Scores may not be negative, so the least that each layer can add is taken off beforehand.
        spared = steps_pp.min(axis=(1, 2))
        scores = np.minimum(np.rint((steps_pp - spared[:, None, None]) / unit_pp), 10 * _STEPS)
        limit = int((limit_pp - base_pp - spared.sum()) / unit_pp)
        if limit >= 0:
            path = cheapest_chain(energy, scores.astype(np.int64), limit)
            if path is not None:
                found.append(path)
    plans = np.array(found, np.intp).reshape(len(found), len(start))
    possible = arrays.supported[np.arange(len(start)), plans].all(axis=1)
    return np.asarray(plans[possible], np.intp)


def _linearised(surrogate: FittedSurrogate, start: Indices) -> tuple[float, Floats]:
    """Predicted drop of ``start``, and what each layer's choice after another adds, (layers, from, to)."""
    layers, width = surrogate.arrays.supported.shape
    single = np.tile(start, (layers, width, 1))
    double = np.tile(start, (layers - 1, width, width, 1))
    choices = np.arange(width)
    for layer in range(layers):
        single[layer, :, layer] = choices
        if layer:
            double[layer - 1, :, :, layer - 1] = choices[:, None]
            double[layer - 1, :, :, layer] = choices
    rows = np.concatenate([start[None], single.reshape(-1, layers), double.reshape(-1, layers)])
    drops_pp, _ = surrogate.predict(rows)
    base_pp = float(drops_pp[0])
    own_pp = drops_pp[1 : 1 + layers * width].reshape(layers, width) - base_pp
    both_pp = drops_pp[1 + layers * width :].reshape(layers - 1, width, width) - base_pp
    steps_pp = np.repeat(own_pp[:, None, :], width, axis=1)
    steps_pp[1:] += both_pp - own_pp[:-1, :, None] - own_pp[1:, None, :]
    return base_pp, steps_pp


def _energy(arrays: PlanArrays) -> Floats:
    """Share of the reference energy that each choice after another costs, (layers, from, to)."""
    energy_j = arrays.energy_j[:, None, :] + arrays.conversion_j
    share: Floats = energy_j / arrays.profile.reference_energy_j
    return np.where(np.isfinite(share), share, _FORBIDDEN)
