"""A real network as a search problem: run once whoever asks, and judged by the best plan known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import FormulaEvaluator, make_profile

from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.gate import SearchGate
from scripts.benchmarks import recorded_network
from scripts.benchmarks.recorded_network import ProblemSettings, RecordedNetwork, open_network
from scripts.benchmarks.search_cells import SearchCell, run_cell, run_cells
from scripts.benchmarks.search_problems import is_table, optimum_j
from scripts.benchmarks.search_scores import optimisation_regrets
from wattbit.errors import DataError
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(3)
PLANS = [PrecisionPlan.uniform(PROFILE.layer_names, name) for name in PROFILE.precisions[:3]]


class Runs:
    """Counts how often a model is made, and which plans it runs."""

    def __init__(self) -> None:
        self.built = 0
        self.ran: list[PrecisionPlan] = []

    def build(self) -> PlanEvaluator:
        self.built += 1
        runs, made_up = self, FormulaEvaluator(PROFILE)

        class Evaluator:
            def evaluate_all(self, plans: list[PrecisionPlan]) -> object:
                runs.ran += plans
                return made_up.evaluate_all(plans)

        return Evaluator()  # type: ignore[return-value]  # all that is asked of it


def test_a_plan_is_run_once_in_all_processes_and_the_model_is_made_only_for_a_new_one(tmp_path: Path) -> None:
    runs = Runs()
    first = RecordedNetwork(PROFILE, tmp_path, runs.build)
    outcomes = first.evaluate_all([PLANS[0], PLANS[1], PLANS[0]])
    assert runs.ran == PLANS[:2]
    assert outcomes[0] is outcomes[2]
    later = RecordedNetwork(PROFILE, tmp_path, runs.build)
    assert later.evaluate_all(PLANS[:2]) == outcomes[:2]
    assert later.evaluations == 2
    assert runs.built == 1
    later.evaluate(PLANS[2])
    assert runs.ran == PLANS
    assert runs.built == 2


def test_the_best_plan_known_counts_those_that_others_ran_meanwhile(tmp_path: Path) -> None:
    one, other = (RecordedNetwork(PROFILE, tmp_path, Runs().build) for _ in range(2))
    gate = SearchGate(0.5)
    one.evaluate(PLANS[0])
    assert one.optimum(1e6, gate).plan == PLANS[0]
    cheapest = min(other.evaluate_all(PLANS), key=lambda outcome: outcome.energy_j)
    assert one.optimum(1e6, gate) == cheapest


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A problem made of the digits workload."""
    overrides = ("workload=digits", "workload.epochs=1", "precisions=integer", "energy=modelled")
    recipe = ProblemSettings((*overrides, f"cache_dir={tmp_path}"), 32)
    monkeypatch.setattr(recorded_network, "NETWORKS", {**recorded_network.NETWORKS, "digits": recipe})
    monkeypatch.setattr("scripts.benchmarks.search_problems.NETWORKS", {"digits": recipe})
    open_network.cache_clear()
    optimum_j.cache_clear()
    return "digits"


def test_a_search_on_a_real_network_is_compared_with_the_best_plan_known(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_table(digits)
    cell = SearchCell(digits, "greedy", 8, 0, "raw")
    result = run_cells([cell], tmp_path / "cells")[cell]
    assert 1 <= len(result.outcomes) <= 8
    # Nothing else has run, so that nothing better is known.
    assert optimisation_regrets(result) == [0.0] * 6
    # Another process recalls all of it, without the model.
    open_network.cache_clear()
    monkeypatch.setattr(recorded_network, "build_model", _refuse)
    assert run_cells([cell], tmp_path / "cells")[cell] == result
    assert run_cell(cell).outcomes == result.outcomes


def test_more_samples_than_the_split_has_are_refused(digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recorded_network.NETWORKS[digits]
    monkeypatch.setattr(recorded_network, "NETWORKS", {digits: ProblemSettings(recipe.overrides, 10**6)})
    with pytest.raises(DataError, match="1000000 samples asked for"):
        open_network(digits)


def _refuse(*arguments: object) -> Callable[[], None]:
    raise AssertionError("nothing is to be run again")
