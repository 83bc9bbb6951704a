"""The networks that search methods are compared on: two exhaustive tables, and made-up ones of any depth."""

from __future__ import annotations

from functools import cache

from envs.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator
from envs.tabular import TabularEvaluator

SYNTHETIC = "synthetic_"
"""A problem of this name ends in its number of layers; another seed is another network."""


def is_table(problem: str) -> bool:
    """True if every plan's outcome on held-out data is known, too."""
    return not problem.startswith(SYNTHETIC)


def open_problem(problem: str, seed: int) -> Evaluator:
    """An evaluator of the problem that has evaluated nothing yet, and lets nothing else be seen.

    Raises:
        DataError: If there is no such table.
    """
    if is_table(problem):
        return TabularEvaluator(_table(problem).table).for_search()
    return SyntheticEvaluator(int(problem.removeprefix(SYNTHETIC)), seed=seed)


@cache
def optimum_j(problem: str, seed: int, tolerance_pp: float, gate: SearchGate) -> float:
    """Energy of the cheapest of all plans that pass ``gate``, joules."""
    known = _table(problem) if is_table(problem) else _synthetic(problem, seed)
    return known.optimum(tolerance_pp, gate).energy_j


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


@cache
def _synthetic(problem: str, seed: int) -> SyntheticEvaluator:
    return SyntheticEvaluator(int(problem.removeprefix(SYNTHETIC)), seed=seed)
