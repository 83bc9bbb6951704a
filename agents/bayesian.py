"""Bayesian optimisation: run the plans that promise most by a surrogate of the drop, and learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.additive import additive_plans
from agents.search_method import SearchTask
from agents.surrogate.acquisition import Acquisition
from agents.surrogate.chain_step import AIMS, chain_steps
from agents.surrogate.drop_surrogate import DropSurrogate, FittedSurrogate
from agents.surrogate.plan_arrays import Indices, PlanArrays
from wattbit.plan import PrecisionPlan

Floats = NDArray[np.float64]

# Up to so many plans are all looked at; of more, the best are climbed to.
_MOST_SCANNED = 200_000
# Of a scan, the plans that promise most at each tolerance are looked at again until the next one.
_KEPT = 1000
# Weights of the kernels are learned, and all plans scanned, again when there are so many times more outcomes.
_GROWTH = 1.15
# A plan is run if it promises this share of what the most promising plan of its round does.
_WORTH_RUNNING = 0.1
# Nothing is run for less than this share of the energy.
_LEAST_PROMISE = 1e-6


class BayesianOptimisation:
    """Starts from additive optima; then each round runs the most promising plan of every tolerance.

    What a plan promises is the energy it would save, times the probability that it passes the search gate.

    Args:
        long_steps: True if plans are climbed to from where `agents.surrogate.chain_step` leads; False if only
            from the best plans known and from additive optima. Where all plans can be looked at it changes
            nothing.
    """

    def __init__(self, long_steps: bool = False) -> None:
        self.name = "bayesian_long" if long_steps else "bayesian"
        self._long_steps = long_steps

    def search(self, task: SearchTask) -> None:
        """Evaluate until the budget is spent or no plan promises anything."""
        profile = task.evaluator.profile
        start = additive_plans(profile, max(1, task.budget // 5))
        task.evaluator.evaluate_all(start[: task.budget])
        surrogate = DropSurrogate(profile, task.archive.gate)
        proposer = self._proposer(surrogate.arrays, start, np.random.default_rng(task.seed))
        fitted: FittedSurrogate | None = None
        learned = 0
        while (left := task.budget - task.evaluator.evaluations) > 0:
            task.report(task.evaluator.evaluations, task.budget, "")
            outcomes = list(task.archive.known.values())
            due = fitted is None or len(outcomes) >= _GROWTH * learned
            learned = len(outcomes) if due else learned
            fitted = surrogate.fit(outcomes, None if due else fitted)
            chosen = _worthwhile(proposer.propose(_State.of(task, fitted, due)), left)
            if not chosen:
                break
            task.evaluator.evaluate_all(surrogate.arrays.plans(np.stack(chosen)))
        task.report(task.evaluator.evaluations, task.budget, "")

    def _proposer(
        self, arrays: PlanArrays, start: list[PrecisionPlan], rng: np.random.Generator
    ) -> _Proposer:
        if arrays.supported.sum(axis=1).prod(dtype=np.float64) <= _MOST_SCANNED:
            return _Scan(arrays)
        return _Climb(arrays.indices(start), rng, self._long_steps)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """What is known in a round.

    Attributes:
        surrogate: Predicts drops.
        acquisition: What plans promise.
        tolerances_pp: The tolerances.
        best: The best plan known at each tolerance, (tolerances, layers).
        thoroughly: True to look further than in other rounds.
    """

    surrogate: FittedSurrogate
    acquisition: Acquisition
    tolerances_pp: tuple[float, ...]
    best: Indices
    thoroughly: bool

    @classmethod
    def of(cls, task: SearchTask, fitted: FittedSurrogate, thoroughly: bool) -> _State:
        return cls(
            fitted,
            Acquisition(fitted, task.archive, task.tolerances_pp),
            task.tolerances_pp,
            fitted.arrays.indices([task.archive.best(t).plan for t in task.tolerances_pp]),
            thoroughly,
        )


class _Proposer(Protocol):
    """Finds the plans that promise most."""

    def propose(self, state: _State) -> list[tuple[float, Indices]]:
        """A promise and a new plan for each tolerance, all different; a promise of 0 is none."""


class _Scan:
    """Looks at every plan there is."""

    def __init__(self, arrays: PlanArrays) -> None:
        choices = [np.flatnonzero(supported) for supported in arrays.supported]
        self._plans = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, len(choices))
        self._kept = self._plans

    def propose(self, state: _State) -> list[tuple[float, Indices]]:
        looked_at = self._plans if state.thoroughly else self._kept
        values = state.acquisition.values(looked_at)
        if state.thoroughly:
            top = np.argpartition(-values, min(_KEPT, len(values) - 1), axis=0)[:_KEPT]
            self._kept = looked_at[np.unique(top)]
        found = []
        for column in range(values.shape[1]):
            row = int(values[:, column].argmax())
            found.append((float(values[row, column]), looked_at[row]))
            values[row] = 0.0
        return found


class _Climb:
    """Climbs to plans that promise much, from plans that are good or promising themselves."""

    def __init__(self, optima: Indices, rng: np.random.Generator, long_steps: bool) -> None:
        self._optima = optima
        self._rng = rng
        self._long_steps = long_steps

    def propose(self, state: _State) -> list[tuple[float, Indices]]:
        acquisition = state.acquisition
        found: list[tuple[float, Indices]] = []
        for column, tolerance_pp in enumerate(state.tolerances_pp):
            starts = [state.best[column]]
            if self._long_steps:
                limits_pp = [aim * tolerance_pp for aim in AIMS]
                starts += _promising(acquisition, chain_steps(state.surrogate, starts[0], limits_pp), column)
            else:
                starts += [plan for _, plan in found[-1:]]
                if state.thoroughly:
                    starts += _promising(acquisition, np.concatenate([state.best, self._optima]), column)
            climbed = [acquisition.climb(start, column, self._rng) for start in starts]
            plan, value = max(climbed, key=lambda pair: pair[1])
            if value > 0.0:
                acquisition.exclude(plan)
                found.append((value, plan))
        return found


def _promising(acquisition: Acquisition, plans: Indices, column: int) -> list[Indices]:
    """The most promising of ``plans``, if there is any."""
    return [plans[int(acquisition.values(plans)[:, column].argmax())]] if len(plans) else []


def _worthwhile(found: list[tuple[float, Indices]], count: int) -> list[Indices]:
    """The plans that promise most, at most ``count``; none that promises much less than the best does."""
    ranked = sorted(found, key=lambda pair: -pair[0])
    least = max(_LEAST_PROMISE, _WORTH_RUNNING * ranked[0][0]) if ranked else 0.0
    return [plan for value, plan in ranked[:count] if value >= least]
