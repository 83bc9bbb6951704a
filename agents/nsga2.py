"""NSGA-II: evolution towards the front of energy and judged drop, seeded with the additive optimum.

Deb et al. (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE Transactions on
Evolutionary Computation 6:182-197, as `pymoo` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.additive import additive_plans
from agents.search_method import SearchTask, spread
from envs.continuous_action import by_energy
from envs.evaluators.evaluator import Outcome
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

Genomes = NDArray[np.int64]

# Generations in a row that bring no new plan, after which the search has converged.
_STALE = 20


class NSGA2:
    """Evolution of plans; one front serves all tolerances.

    A genome has one integer a layer, which counts the precisions that the layer supports from the cheapest
    up. Objectives are energy and the drop that the search gate judges; plans that break even the largest
    tolerance rank behind all that hold it, by how much they break it. A generation is evaluated at once.

    Args:
        population: Plans in a generation; half the budget if that is less.
        seeded_share: Share of the first generation that the additive optimum gives; the rest is random.

    Raises:
        ConfigError: If a setting makes no sense.
    """

    name = "nsga2"

    def __init__(self, *, population: int = 60, seeded_share: float = 0.8) -> None:
        if population < 4:
            raise ConfigError(f"population is {population}, must be at least 4; 60 is the default")
        if not 0.0 <= seeded_share <= 1.0:
            raise ConfigError(f"seeded_share is {seeded_share}, must be from 0 to 1; 0.8 is the default")
        self._population = population
        self._seeded_share = seeded_share

    def search(self, task: SearchTask) -> None:
        """Evolve until the budget is spent or nothing new turns up.

        Raises:
            ConfigError: If pymoo is not installed.
        """
        genes = Genes(task.evaluator.profile)
        size = max(4, min(self._population, task.budget // 2))
        algorithm = _algorithm(genes, self._first(genes, size, task.seed), task.seed)
        stale = 0
        while task.evaluator.evaluations < task.budget and stale < _STALE:
            generation = algorithm.ask()
            if generation is None or len(generation) == 0:
                return
            before = task.evaluator.evaluations
            # The evaluator would refuse those beyond the budget.
            kept = generation[: task.budget - before]
            outcomes = task.evaluator.evaluate_all([genes.plan(row) for row in kept.get("X")])
            kept.set("F", _objectives(outcomes, task), "G", _violations(outcomes, task))
            algorithm.tell(infills=kept)
            stale = 0 if task.evaluator.evaluations > before else stale + 1
            task.report(task.evaluator.evaluations, task.budget, "")

    def _first(self, genes: Genes, size: int, seed: int) -> Genomes:
        """The first generation, (size, layers): evenly spread additive optima, then random genomes."""
        seeds = genes.additive_optima(2 * size)
        wanted = round(self._seeded_share * size)
        chosen = seeds[spread(range(len(seeds)), wanted)] if wanted else seeds[:0]
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, genes.choices, (50 * size, len(genes.choices)))
        both = np.concatenate([chosen, drawn])
        _, positions = np.unique(both, axis=0, return_index=True)
        return both[np.sort(positions)][:size]


class Genes:
    """Plans as integers: gene l counts the precisions that layer l supports, from the cheapest up."""

    def __init__(self, profile: ModelProfile) -> None:
        self._profile = profile
        self._names = [by_energy(profile, index) for index in range(len(profile.layers))]
        self.choices = np.array([len(names) for names in self._names])

    def plan(self, genome: NDArray[np.int64]) -> PrecisionPlan:
        """The plan of a genome, (layers,)."""
        chosen = [names[gene] for names, gene in zip(self._names, genome, strict=True)]
        return PrecisionPlan(dict(zip(self._profile.layer_names, chosen, strict=True)))

    def genome(self, plan: PrecisionPlan) -> list[int]:
        """The genome of a plan."""
        return [names.index(name) for names, name in zip(self._names, plan.values(), strict=True)]

    def additive_optima(self, count: int) -> Genomes:
        """The distinct optima for ``count`` sensitivity budgets, the most careful first, (plans, layers)."""
        plans = additive_plans(self._profile, count)
        return np.array([self.genome(plan) for plan in plans], dtype=np.int64)


def _objectives(outcomes: Sequence[Outcome], task: SearchTask) -> NDArray[np.float64]:
    """Energy relative to the reference and judged drop of each plan, (plans, 2)."""
    reference_j = task.archive.reference.energy_j
    return np.array([[o.energy_j / reference_j, _judged_pp(o, task)] for o in outcomes])


def _violations(outcomes: Sequence[Outcome], task: SearchTask) -> NDArray[np.float64]:
    """By how much each plan breaks the largest tolerance, percentage points, (plans, 1)."""
    return np.array([[_judged_pp(o, task) - max(task.tolerances_pp)] for o in outcomes])


def _judged_pp(outcome: Outcome, task: SearchTask) -> float:
    # The reference cannot drop against itself, whatever the size of the split.
    if outcome.plan == task.archive.reference.plan:
        return 0.0
    return task.archive.gate.bound_pp(outcome.counts)


def _algorithm(genes: Genes, first: Genomes, seed: int) -> Any:
    """The NSGA-II of pymoo with ask and tell, its operators rounded to integers.

    Raises:
        ConfigError: If pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2 as Algorithm  # noqa: N811 (ours has its name)
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.termination import get_termination
    except ImportError:
        raise ConfigError(
            'nsga2 needs pymoo, which is not installed; pip install -e ".[search]" installs it'
        ) from None
    problem = Problem(
        n_var=len(genes.choices), n_obj=2, n_ieq_constr=1, xl=0, xu=genes.choices - 1, vtype=int
    )
    algorithm = Algorithm(
        pop_size=len(first),
        sampling=first,
        crossover=UniformCrossover(repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, seed=seed, termination=get_termination("n_gen", 10**9), verbose=False)
    return algorithm
