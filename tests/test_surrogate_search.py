"""Bayesian optimisation and local search: within budget, repeatable, and better than what they start from."""

from collections.abc import Callable

import numpy as np
import pytest
from synthetic import FormulaEvaluator, all_plans, make_profile

from agents.additive import additive_plans
from agents.archive import Archive, ArchivingEvaluator
from agents.baselines import ILP
from agents.bayesian import BayesianOptimisation
from agents.local_search import LocalSearch
from agents.search_method import SearchMethod, SearchTask
from agents.stopping import BudgetSpent, SearchInterrupted
from agents.surrogate.chain_step import chain_steps
from agents.surrogate.drop_surrogate import DropSurrogate
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator
from wattbit.plan import PrecisionPlan

METHODS: list[Callable[[], SearchMethod]] = [
    BayesianOptimisation,
    lambda: BayesianOptimisation(long_steps=True),
    LocalSearch,
]
TOLERANCES_PP = (0.5, 1.0, 3.0)
OBSERVED = SearchGate(0.5)


def search(
    method: SearchMethod, evaluator: Evaluator, budget: int, seed: int = 0
) -> tuple[Archive, list[tuple[int, int, str]]]:
    """The archive of a method that never asks for more than its budget, and what it reports."""
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), OBSERVED)
    archiving = ArchivingEvaluator(evaluator, method.name, (archive,), budget)
    reports: list[tuple[int, int, str]] = []
    task = SearchTask(archiving, archive, TOLERANCES_PP, budget, seed, lambda *report: reports.append(report))
    method.search(task)
    return archive, reports


def mean_best(archive: Archive) -> float:
    """Energy of the best plans, as a share of the reference's."""
    best_j = [archive.best(tolerance).energy_j for tolerance in TOLERANCES_PP]
    return float(np.mean(best_j)) / archive.reference.energy_j


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_method_keeps_its_budget_and_says_how_it_goes_on(
    make: Callable[[], SearchMethod], budget: int
) -> None:
    archive, reports = search(make(), SyntheticEvaluator(12), budget)
    assert 1 <= len(archive) <= budget
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert all(done <= total == budget for done, total, _ in reports)


@pytest.mark.parametrize("make", METHODS)
def test_a_method_finds_the_same_with_the_same_seed(make: Callable[[], SearchMethod]) -> None:
    first, second = (search(make(), SyntheticEvaluator(10), 25, seed=3)[0] for _ in range(2))
    assert list(first) == list(second)


@pytest.mark.parametrize("make", METHODS)
def test_a_method_uses_only_what_a_layer_supports(make: Callable[[], SearchMethod]) -> None:
    profile = make_profile(9, missing={0: ("int8", "int2"), 4: ("bf16",), 8: ("int4", "int2")})
    archive, _ = search(make(), FormulaEvaluator(profile), 30)
    assert len(archive) > 10
    for outcome in archive:
        assert profile.require_plan(outcome.plan) == outcome.plan


@pytest.mark.parametrize("make", METHODS)
def test_a_model_of_few_plans_is_searched_without_end_or_repetition(make: Callable[[], SearchMethod]) -> None:
    evaluator = FormulaEvaluator(make_profile(2))
    archive, _ = search(make(), evaluator, 60)
    assert len(archive) <= 25
    assert len(evaluator.ran) == len(set(evaluator.ran))


@pytest.mark.parametrize("seed", range(3))
def test_bayesian_optimisation_is_within_a_percent_of_the_best_of_all_plans(seed: int) -> None:
    profile = make_profile(5, seed=seed)
    evaluator = FormulaEvaluator(profile)
    archive, _ = search(BayesianOptimisation(), evaluator, 60)
    everything = Archive(archive.reference, OBSERVED)
    for plan in all_plans(profile):
        everything.add(evaluator.evaluate(plan), "all")
    assert mean_best(archive) <= 1.01 * mean_best(everything)


@pytest.mark.parametrize("make", METHODS[:2])
def test_bayesian_optimisation_beats_additive_optima_where_layers_interact(
    make: Callable[[], SearchMethod],
) -> None:
    bayesian, _ = search(make(), SyntheticEvaluator(24), 50)
    additive, _ = search(ILP(), SyntheticEvaluator(24), 50)
    assert mean_best(bayesian) < 0.98 * mean_best(additive)


def test_local_search_improves_on_where_it_starts_and_spends_what_it_may() -> None:
    evaluator = SyntheticEvaluator(30)
    archive, _ = search(LocalSearch(), evaluator, 150)
    start = Archive(archive.reference, OBSERVED)
    for plan in additive_plans(evaluator.profile, 30):
        start.add(evaluator.evaluate(plan), "ilp")
    assert mean_best(archive) < 0.99 * mean_best(start)
    assert len(archive) == 150


@pytest.mark.parametrize("make", METHODS)
def test_what_was_evaluated_before_an_interruption_is_kept(make: Callable[[], SearchMethod]) -> None:
    evaluator = FormulaEvaluator(make_profile(9))
    left = iter(range(26))

    def stop(plan: PrecisionPlan) -> None:
        if next(left, None) is None:
            raise SearchInterrupted

    evaluator.before_run = stop
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), OBSERVED)
    task = SearchTask(ArchivingEvaluator(evaluator, "it", (archive,)), archive, TOLERANCES_PP, 60, 0)
    with pytest.raises(SearchInterrupted):
        make().search(task)
    assert 0 < len(archive) <= 26
    assert mean_best(archive) < 1.0


@pytest.mark.parametrize("make", METHODS)
def test_a_budget_smaller_than_promised_ends_the_search(make: Callable[[], SearchMethod]) -> None:
    evaluator = SyntheticEvaluator(12)
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), OBSERVED)
    task = SearchTask(ArchivingEvaluator(evaluator, "it", (archive,), 20), archive, TOLERANCES_PP, 60, 0)
    with pytest.raises(BudgetSpent):
        make().search(task)
    assert len(archive) == 20


def test_long_steps_lead_to_cheaper_plans_of_the_drop_aimed_at() -> None:
    evaluator = SyntheticEvaluator(20, seed=2)
    archive, _ = search(ILP(), evaluator, 30)
    outcomes: list[Outcome] = [*archive, *search(LocalSearch(), evaluator, 60)[0]]
    surrogate = DropSurrogate(evaluator.profile).fit(list({o.plan: o for o in outcomes}.values()))
    best = archive.best(2.0)
    plans = chain_steps(surrogate, surrogate.arrays.indices([best.plan])[0], np.array([1.0, 2.0]))
    predicted, _ = surrogate.predict(plans)
    assert predicted == pytest.approx([1.0, 2.0], rel=0.2)
    assert surrogate.arrays.energies_j(plans)[1] < best.energy_j


def test_a_long_step_to_a_drop_that_no_plan_keeps_leads_nowhere() -> None:
    profile = make_profile(4)
    surrogate = DropSurrogate(profile).fit([])
    assert chain_steps(surrogate, np.array([4, 4, 4, 4]), np.array([1e-9])).shape[1] == 4
