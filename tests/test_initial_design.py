"""The initial design: additive optima, most of them near a tolerance."""

from agents.archive import Archive, ArchivingEvaluator
from agents.initial_design import BisectedDesign
from agents.search_method import SearchTask
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator

GATE = SearchGate(0.5)
TOLERANCES = (0.5, 2.0)


def designed(evaluations: int, layers: int = 20, budget: int = 200) -> Archive:
    evaluator = SyntheticEvaluator(layers, seed=3)
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), GATE)
    archiving = ArchivingEvaluator(evaluator, "design", (archive,), budget)
    BisectedDesign(SearchTask(archiving, archive, TOLERANCES, budget, 0)).run(evaluations)
    return archive


def test_as_many_plans_are_run_as_asked_for_unless_no_more_are_left() -> None:
    for evaluations in (1, 5, 16):
        assert len(designed(evaluations)) <= evaluations
    assert len(designed(16)) >= 12
    assert len(designed(500, layers=2)) <= 16


def test_more_plans_find_plans_nearer_to_each_tolerance() -> None:
    few, many = designed(8), designed(24)
    for tolerance in TOLERANCES:
        assert many.best(tolerance).energy_j <= few.best(tolerance).energy_j
    # Of the plans beyond the grid, most drop nearly as much as some tolerance allows.
    later = list(many)[8:]
    near = [o for o in later if any(0.5 < o.drop_pp / tolerance < 2.0 for tolerance in TOLERANCES)]
    assert len(near) > 0.7 * len(later)
