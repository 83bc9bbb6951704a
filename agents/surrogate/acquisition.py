"""The acquisition function: expected saving of plans that were not run yet, and hill climbing on it.

A plan's energy is known without running it, so its expected improvement at a tolerance (Jones et al. 1998) is
the energy it saves beyond the incumbent, times its probability of feasibility: that it passes the search gate
(Gardner et al. 2014, "Bayesian optimization with inequality constraints").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.archive import Archive
from agents.surrogate.drop_surrogate import FittedSurrogate
from agents.surrogate.plan_arrays import Indices
from wattbit.features import Floats

# Changes of one layer and of two that a step of hill climbing tries; up to 130 layers of four precisions all
# changes of one. Without a limit, the time of a step would grow with the square of the layers.
_SINGLE = 400
_PAIRS = 200
_MOST_STEPS = 100


class Acquisition:
    """Expected savings at each tolerance, given what is known now.

    Args:
        surrogate: Predicts drops.
        archive: What is known; a plan in it has no expected saving any more.
        tolerances_pp: The tolerances.

    Attributes:
        surrogate: Predicts drops.
        incumbents: The best plan known at each tolerance, (tolerances, layers).
    """

    def __init__(self, surrogate: FittedSurrogate, archive: Archive, tolerances_pp: Sequence[float]) -> None:
        self.surrogate = surrogate
        self._arrays = surrogate.arrays
        self.tolerances_pp = tuple(tolerances_pp)
        best = [archive.best(tolerance_pp) for tolerance_pp in tolerances_pp]
        self.incumbents = self._arrays.indices([outcome.plan for outcome in best])
        self._best_j = np.array([outcome.energy_j for outcome in best])
        self._known = {row.tobytes() for row in self._arrays.indices([o.plan for o in archive])}

    def exclude(self, row: Indices) -> None:
        """Treat the plan (layers,) as known from now on."""
        self._known.add(row.tobytes())

    def values(self, indices: Indices) -> Floats:
        """Expected saving of each plan, as a share of the incumbent's energy, (plans, tolerances)."""
        gains: Floats = np.maximum(0.0, 1.0 - self._arrays.energies_j(indices)[:, None] / self._best_j)
        gains[[row.tobytes() in self._known for row in indices]] = 0.0
        hopeful = gains.any(axis=1)
        if hopeful.any():
            gains[hopeful] *= self.surrogate.feasibility(indices[hopeful], self.tolerances_pp)
        return gains

    def climb(self, start: Indices, column: int, rng: np.random.Generator) -> tuple[Indices, float]:
        """Hill climbing from ``start`` (layers,): the best change of one or two layers until none is better.

        Args:
            start: The plan to start from.
            column: Which tolerance.
            rng: Draws the changes of two layers.

        Returns:
            The plan reached and its expected saving; 0 if no plan better than the incumbent was found.
        """
        best, value = start, float(self.values(start[None])[0, column])
        for _ in range(_MOST_STEPS):
            around = self._around(best, rng)
            values = self.values(around)[:, column]
            top = int(values.argmax())
            if values[top] <= value * (1.0 + 1e-9):
                break
            best, value = around[top], float(values[top])
        return best, value

    def _around(self, plan: Indices, rng: np.random.Generator) -> Indices:
        """Changes of one layer, and of two."""
        supported = self._arrays.supported
        layers, choices = supported.nonzero()
        other = plan[layers] != choices
        layers, choices = layers[other], choices[other]
        if not len(layers):
            return plan[None]
        if len(layers) > _SINGLE:
            drawn = rng.choice(len(layers), _SINGLE, replace=False)
            layers, choices = layers[drawn], choices[drawn]
        single = np.repeat(plan[None], len(layers), axis=0)
        single[np.arange(len(layers)), layers] = choices
        double = single[rng.integers(len(layers), size=_PAIRS)]
        second = rng.integers(len(layers), size=_PAIRS)
        double[np.arange(_PAIRS), layers[second]] = choices[second]
        return np.concatenate([single, double])
