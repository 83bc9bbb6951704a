"""The networks that search methods are compared on.

Exhaustive tables, synthetic networks of any depth, and real networks with too many plans to run them all:
their optimum is not known, so the best plan run so far takes its place.
"""

from __future__ import annotations

from functools import cache

from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from envs.plan_table import table_names
from envs.synthetic import SyntheticEvaluator
from envs.tabular import TabularEvaluator
from scripts.benchmarks.recorded_network import NETWORKS, RecordedNetwork, open_network

SYNTHETIC = "synthetic_"
"""A problem of this name ends in its number of layers; another seed is another network."""


def is_table(problem: str) -> bool:
    """True if every plan's outcome on held-out data is known, too."""
    return problem in table_names()


def open_problem(problem: str, seed: int) -> Evaluator:
    """An evaluator of the problem that shows a search nothing but the plans it asks for.

    Raises:
        DataError: If there is no such table, or a network's data are not on this machine.
    """
    opened = _open(problem, seed)
    # A table is shared, the count of evaluations is not.
    return TabularEvaluator(opened.table).for_search() if isinstance(opened, TabularEvaluator) else opened


@cache
def optimum_j(problem: str, seed: int, tolerance_pp: float, gate: SearchGate) -> float:
    """Energy of the cheapest of all plans that pass ``gate``, joules; for a network, of all that were run."""
    return _all_plans(problem, seed).optimum(tolerance_pp, gate).energy_j


@cache
def held_out_optimum_j(problem: str, tolerance_pp: float) -> float:
    """Energy of the cheapest of all plans that hold the tolerance on held-out data, joules."""
    return _table(problem).held_out_optimum(tolerance_pp).energy_j


def leaks(problem: str, outcome: Outcome, tolerance_pp: float) -> bool:
    """True if the plan breaks the tolerance on held-out data."""
    return _table(problem).held_out_counts(outcome.plan).drop_pp > tolerance_pp


@cache
def _table(problem: str) -> TabularEvaluator:
    return TabularEvaluator(problem)


def _open(problem: str, seed: int) -> TabularEvaluator | SyntheticEvaluator | RecordedNetwork:
    """The problem with its optimum: a new synthetic network, but the same table or real network each time."""
    if problem in NETWORKS:
        return open_network(problem)
    if problem.startswith(SYNTHETIC):
        return SyntheticEvaluator(int(problem.removeprefix(SYNTHETIC)), seed=seed)
    return _table(problem)


_all_plans = cache(_open)
