"""Bayesian optimisation: run the plans of largest expected saving by a surrogate of the drop, then refit."""

from __future__ import annotations

import numpy as np

from agents.initial_design import run_spread_design
from agents.search_method import SearchTask
from agents.surrogate.acquisition import Acquisition
from agents.surrogate.chain_step import AIMS, chain_steps
from agents.surrogate.drop_surrogate import DropSurrogate, FittedSurrogate
from agents.surrogate.plan_arrays import Indices, PlanArrays

# Up to this many plans, all are scanned; among more, hill climbing finds the best.
_MOST_SCANNED = 200_000
# Plans of a scan, those of largest expected saving at each tolerance, that are looked at until the next scan.
_KEPT = 1000
# Kernel weights are learned, and all plans scanned, again when outcomes have grown by this factor.
_GROWTH = 1.15
# A plan is run if its expected saving is this share of the largest of its round,
_WORTH_RUNNING = 0.1
# and at least this share of the incumbent's energy.
_LEAST_SAVING = 1e-6

ScoredPlan = tuple[float, Indices]
"""Expected saving and plan (layers,)."""


class BayesianOptimisation:
    """After an initial design, each round runs the plan of largest expected saving at every tolerance.

    Args:
        long_steps: True if hill climbing starts where `agents.surrogate.chain_step` leads; False if only from
            incumbents and additive optima. Where all plans are scanned it changes nothing.
    """

    def __init__(self, long_steps: bool = False) -> None:
        self.name = "bayesian_long" if long_steps else "bayesian"
        self._long_steps = long_steps

    def search(self, task: SearchTask) -> None:
        """Evaluate until the budget is spent or no plan is worth running."""
        initial = run_spread_design(task)
        surrogate = DropSurrogate(task.evaluator.profile, task.archive.gate)
        arrays, rng = surrogate.arrays, np.random.default_rng(task.seed)
        proposer: _Scan | _HillClimbing
        if arrays.supported.sum(axis=1).prod(dtype=np.float64) <= _MOST_SCANNED:
            proposer = _Scan(arrays)
        else:
            proposer = _HillClimbing(arrays.indices(initial), rng, self._long_steps)
        fitted: FittedSurrogate | None = None
        learned = 0
        while (left := task.budget - task.evaluator.evaluations) > 0:
            task.report(task.evaluator.evaluations, task.budget, "")
            outcomes = list(task.archive.known.values())
            due = fitted is None or len(outcomes) >= _GROWTH * learned
            learned = len(outcomes) if due else learned
            fitted = surrogate.fit(outcomes, None if due else fitted)
            acquisition = Acquisition(fitted, task.archive, task.tolerances_pp)
            chosen = _worthwhile(proposer.propose(acquisition, thorough=due), left)
            if not chosen:
                break
            task.evaluator.evaluate_all(arrays.plans(np.stack(chosen)))
        task.report(task.evaluator.evaluations, task.budget, "")


class _Scan:
    """Looks at every plan in a thorough round, else at the best of the last one."""

    def __init__(self, arrays: PlanArrays) -> None:
        choices = [np.flatnonzero(supported) for supported in arrays.supported]
        self._plans = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, len(choices))
        self._kept = self._plans

    def propose(self, acquisition: Acquisition, *, thorough: bool) -> list[ScoredPlan]:
        """A candidate for each tolerance, all different."""
        plans = self._plans if thorough else self._kept
        values = acquisition.values(plans)
        if thorough:
            top = np.argpartition(-values, min(_KEPT, len(values) - 1), axis=0)[:_KEPT]
            self._kept = plans[np.unique(top)]
        found = []
        for column in range(values.shape[1]):
            row = int(values[:, column].argmax())
            found.append((float(values[row, column]), plans[row]))
            values[row] = 0.0
        return found


class _HillClimbing:
    """Climbs from incumbents and from candidates of large expected saving."""

    def __init__(self, optima: Indices, rng: np.random.Generator, long_steps: bool) -> None:
        self._optima = optima
        self._rng = rng
        self._long_steps = long_steps

    def propose(self, acquisition: Acquisition, *, thorough: bool) -> list[ScoredPlan]:
        """New candidates, at most one for each tolerance; thorough rounds start from more plans."""
        incumbents = acquisition.incumbents
        found: list[ScoredPlan] = []
        for column, tolerance_pp in enumerate(acquisition.tolerances_pp):
            starts = [incumbents[column]]
            if self._long_steps:
                far = chain_steps(acquisition.surrogate, starts[0], AIMS * tolerance_pp)
                starts += _best(acquisition, far, column)
            else:
                starts += [plan for _, plan in found[-1:]]
                if thorough:
                    starts += _best(acquisition, np.concatenate([incumbents, self._optima]), column)
            climbed = [acquisition.climb(start, column, self._rng) for start in starts]
            plan, value = max(climbed, key=lambda pair: pair[1])
            if value > 0.0:
                acquisition.exclude(plan)
                found.append((value, plan))
        return found


def _best(acquisition: Acquisition, plans: Indices, column: int) -> list[Indices]:
    """The one of ``plans`` with the largest expected saving, if there is any."""
    return [plans[int(acquisition.values(plans)[:, column].argmax())]] if len(plans) else []


def _worthwhile(found: list[ScoredPlan], count: int) -> list[Indices]:
    """The plans of largest expected saving, at most ``count``; none far below the best."""
    ranked = sorted(found, key=lambda pair: -pair[0])
    least = max(_LEAST_SAVING, _WORTH_RUNNING * ranked[0][0]) if ranked else 0.0
    return [plan for value, plan in ranked[:count] if value >= least]
