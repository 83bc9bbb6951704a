"""What a search is worth: two regrets that are never mixed, and how often a chosen plan leaks.

*Optimisation* regret asks how good the optimiser is: the raw gate, against the optimum of the search data.
*Generalisation* regret asks what the user gets: a chosen plan that breaks the tolerance on held-out data
costs the reference energy, because then the reference would run, against the optimum of the held-out data.
Both are shares: 0.01 is 1 % more energy than the optimum.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.archive import Archive
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from scripts.benchmarks.search_cells import CellResult
from scripts.benchmarks.search_methods import RAW, TOLERANCES_PP
from scripts.benchmarks.search_problems import held_out_optimum_j, leaks, optimum_j
from wattbit.energy.ratio_interval import t_quantile


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its two-sided 95 % t-interval, which one seed alone does not have."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of independent ``values``."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        half = t_quantile(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @classmethod
    def of_means(cls, values: Iterable[Sequence[float]]) -> Interval:
        """The interval of the mean of each of ``values``, which are independent."""
        return cls.of([statistics.fmean(each) for each in values])


@dataclass(frozen=True, slots=True)
class Generalised:
    """What the plan chosen at one tolerance is worth on held-out data.

    Attributes:
        regret: Generalisation regret.
        chosen: True if a plan other than the reference was chosen.
        leaked: True if it breaks the tolerance on held-out data.
    """

    regret: float
    chosen: bool
    leaked: bool


def optimisation_regrets(result: CellResult) -> list[float]:
    """Optimisation regret at each tolerance."""
    archive = _archive(result, RAW)
    return [_over_optimum(result, archive.best(t).energy_j, t) for t in TOLERANCES_PP]


def policy_regrets(result: CellResult) -> list[float]:
    """Optimisation regret of the greedy policy's own plans; one that breaks the gate is the reference's."""
    regrets = []
    for tolerance_pp, outcome in result.policy.items():
        passes = outcome.plan == result.reference.plan or RAW.passes(outcome.counts, tolerance_pp)
        energy_j = outcome.energy_j if passes else result.reference.energy_j
        regrets.append(_over_optimum(result, energy_j, tolerance_pp))
    return regrets


def generalisation(result: CellResult, gate: SearchGate) -> list[Generalised]:
    """What the plans that ``gate`` chooses are worth, at each tolerance."""
    archive = _archive(result, gate)
    return [_generalised(result, archive.best(t), t) for t in TOLERANCES_PP]


def anytime_regrets(result: CellResult) -> NDArray[np.float64]:
    """Optimisation regret, mean over the tolerances, after 0, 1, ... up to the budget evaluations."""
    budget, reference_j = result.cell.budget, result.reference.energy_j
    energies_j = np.array([o.energy_j for o in result.outcomes])
    drops_pp = np.array([o.drop_pp for o in result.outcomes])
    curves = []
    for tolerance_pp in TOLERANCES_PP:
        best_j = np.full(budget + 1, reference_j)
        feasible = np.where(drops_pp <= tolerance_pp, energies_j, np.inf)
        best_j[1 : len(feasible) + 1] = np.minimum(np.minimum.accumulate(feasible), reference_j)
        best_j[len(feasible) + 1 :] = best_j[len(feasible)]
        curves.append(best_j / _optimum_j(result, tolerance_pp) - 1.0)
    mean: NDArray[np.float64] = np.mean(curves, axis=0)
    return mean


def _archive(result: CellResult, gate: SearchGate) -> Archive:
    archive = Archive(result.reference, gate)
    for outcome in result.outcomes:
        archive.add(outcome, result.cell.method)
    return archive


def _generalised(result: CellResult, best: Outcome, tolerance_pp: float) -> Generalised:
    problem, chosen = result.cell.problem, best.plan != result.reference.plan
    leaked = chosen and leaks(problem, best, tolerance_pp)
    energy_j = result.reference.energy_j if leaked else best.energy_j
    return Generalised(energy_j / held_out_optimum_j(problem, tolerance_pp) - 1.0, chosen, leaked)


def _over_optimum(result: CellResult, energy_j: float, tolerance_pp: float) -> float:
    return energy_j / _optimum_j(result, tolerance_pp) - 1.0


def _optimum_j(result: CellResult, tolerance_pp: float) -> float:
    return optimum_j(result.cell.problem, result.cell.seed, tolerance_pp, RAW)
