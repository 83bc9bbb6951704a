"""The baselines: each finds what it says, within its budget, and the same with the same seed."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ALL, FormulaEvaluator, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.baselines import ILP, Greedy, Random, Uniform, greedy_path, uniform_plans
from agents.search_method import SearchMethod, SearchTask
from envs.gate import SearchGate
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

METHODS: list[Callable[[], SearchMethod]] = [Uniform, Random, Greedy, ILP]


def search(
    method: SearchMethod, profile: ModelProfile, budget: int, seed: int = 0
) -> tuple[list[PrecisionPlan], list[tuple[int, int, str]]]:
    """The plans that a method asks for, in order, and what it reports. The budget is not enforced here."""
    inner = FormulaEvaluator(profile)
    own = Archive(FormulaEvaluator(profile).evaluate(profile.reference_plan), SearchGate())
    reports: list[tuple[int, int, str]] = []
    evaluator = ArchivingEvaluator(inner, method.name, (own,))
    task = SearchTask(evaluator, own, (1.0,), budget, seed, lambda *report: reports.append(report))
    method.search(task)
    return inner.ran, reports


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 40])
def test_every_method_keeps_its_budget_and_says_how_it_goes_on(
    make: Callable[[], SearchMethod], budget: int
) -> None:
    plans, reports = search(make(), make_profile(5), budget)
    assert 1 <= len(plans) <= budget
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert all(done <= total for done, total, _ in reports)


@pytest.mark.parametrize("make", METHODS)
def test_every_method_uses_only_what_a_layer_supports(make: Callable[[], SearchMethod]) -> None:
    profile = make_profile(4, missing={0: ("int8", "int2"), 3: ("bf16",)})
    plans, _ = search(make(), profile, 30)
    for plan in plans:
        assert profile.require_plan(plan) == plan


@pytest.mark.parametrize("make", METHODS)
def test_every_method_finds_the_same_with_the_same_seed(make: Callable[[], SearchMethod]) -> None:
    profile = make_profile(6)
    assert search(make(), profile, 20, seed=3) == search(make(), profile, 20, seed=3)


def test_random_plans_depend_on_the_seed() -> None:
    profile = make_profile(6)
    assert search(Random(), profile, 20, seed=3)[0] != search(Random(), profile, 20, seed=4)[0]


def test_random_search_ends_where_there_is_nothing_new() -> None:
    plans, _ = search(Random(), make_profile(1), 50)
    assert len(plans) == 5


def test_uniform_plans_are_those_that_every_layer_supports() -> None:
    profile = make_profile(3, missing={1: ("int8",)})
    plans = uniform_plans(profile)
    assert list(plans) == ["fp32", "bf16", "int4", "int2"]
    assert search(Uniform(), profile, 10)[0] == list(plans.values())


def test_the_ilp_asks_for_different_plans_from_the_most_careful_to_the_cheapest() -> None:
    profile = make_profile(5)
    plans, _ = search(ILP(), profile, 30)
    energies_j = [profile.plan_energy_j(plan) for plan in plans]
    assert energies_j == sorted(energies_j, reverse=True)
    assert len(plans) > 5


def best_single_change(profile: ModelProfile, plan: PrecisionPlan) -> float:
    """Energy per nat of the best change of one layer, by computing the energy of every changed plan."""
    energy_j, best = profile.plan_energy_j(plan), 0.0
    for layer in profile.layers:
        for name, cost in layer.costs.items():
            saved_j = energy_j - profile.plan_energy_j(plan.replace(**{layer.name: name}))
            added = max(cost.sensitivity - layer.costs[plan[layer.name]].sensitivity, 1e-9)
            best = max(best, saved_j / added)
    return best


@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    conversions=st.booleans(),
    missing=st.dictionaries(st.integers(0, 5), st.sampled_from([("int8",), ("bf16", "int2")]), max_size=2),
)
def test_every_greedy_step_is_the_best_change_of_one_layer(
    layers: int, seed: int, conversions: bool, missing: dict[int, tuple[str, ...]]
) -> None:
    missing = {index: names for index, names in missing.items() if index < layers}
    profile = make_profile(layers, seed=seed, conversions=conversions, missing=missing)
    before = profile.reference_plan
    for after in greedy_path(profile):
        (name,) = before.changed_layers(after)
        costs = next(layer.costs for layer in profile.layers if layer.name == name)
        saved_j = profile.plan_energy_j(before) - profile.plan_energy_j(after)
        added = max(costs[after[name]].sensitivity - costs[before[name]].sensitivity, 1e-9)
        assert saved_j > 0.0
        assert saved_j / added == pytest.approx(best_single_change(profile, before), rel=1e-6)
        before = after
    assert best_single_change(profile, before) * 1e-9 <= 1e-9 * profile.reference_energy_j


def test_the_greedy_path_of_two_hundred_layers_goes_down_to_the_end() -> None:
    profile = make_profile(200, ALL)
    path = greedy_path(profile)
    energies_j = [profile.reference_energy_j, *(profile.plan_energy_j(plan) for plan in path)]
    assert all(after < before for before, after in pairwise(energies_j))
    assert energies_j[-1] < 0.2 * profile.reference_energy_j
