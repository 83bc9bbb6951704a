"""The additive optimum is the optimum: no plan within the budget is cheaper."""

import math
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ALL, PRECISIONS, all_plans, cost, make_profile, shape

import agents.additive
from agents.additive import AdditiveModel
from agents.baselines import greedy_path
from wattbit.plan import PrecisionPlan
from wattbit.profile import LayerProfile, ModelProfile

ROUNDING = 3e-6
"""What the solver may miss: of the reference energy, and of the budget."""

energies = st.floats(0.01, 10.0) | st.sampled_from([0.5, 1.0])
nats = st.sampled_from([0.0, 1e-3, 2e-3]) | st.floats(1e-9, 1.0)


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    """Any small profile: no order among precisions, ties, gaps, conversions that cost much or nothing."""
    count, names = draw(st.integers(1, 4)), PRECISIONS[: draw(st.integers(1, 4))]
    rng = np.random.default_rng(0)
    layers = []
    for index in range(count):
        costs = {names[0]: cost(draw(energies), 0.0)}
        for name in names[1:]:
            if draw(st.integers(0, 4)):
                costs[name] = cost(draw(energies), draw(nats))
        layers.append(LayerProfile(shape(index, count, rng), costs))
    conversion_j = {}
    if draw(st.booleans()):
        per_element = st.sampled_from([0.0, 1e-6, 1e-4, 1e-2])
        conversion_j = {f"{a}->{b}": draw(per_element) for a, b in product(names, names) if a != b}
    return ModelProfile(tuple(layers), names, "modelled", "any", conversion_j, draw(st.just(None)), None)


def cheapest_j(profile: ModelProfile, budget: float) -> float:
    """The energy of the cheapest plan within a budget, by looking at them all."""
    return min(
        profile.plan_energy_j(plan) for plan in all_plans(profile) if profile.plan_sensitivity(plan) <= budget
    )


def require_optimum(profile: ModelProfile, model: AdditiveModel, budget: float) -> None:
    """Check a solution against all plans."""
    plan = profile.require_plan(model.solve(budget))
    slack = profile.reference_energy_j * ROUNDING
    assert profile.plan_sensitivity(plan) <= budget * (1.0 + ROUNDING)
    assert profile.plan_energy_j(plan) <= cheapest_j(profile, budget) + slack


@settings(deadline=None, max_examples=150)
@given(profiles(), st.floats(0.0, 1.2))
def test_no_plan_within_the_budget_is_cheaper(profile: ModelProfile, share: float) -> None:
    most = sum(max(c.sensitivity for c in layer.costs.values()) for layer in profile.layers)
    require_optimum(profile, AdditiveModel(profile), share * most)


@settings(deadline=None, max_examples=30)
@given(profiles())
def test_the_budgets_reach_from_the_first_change_to_the_last(profile: ModelProfile) -> None:
    model = AdditiveModel(profile)
    budgets = model.budgets(6)
    assert all(after >= before * (1 - 1e-12) for before, after in pairwise(budgets))
    assert len(budgets) == 6
    for budget in budgets:
        require_optimum(profile, model, float(budget))
    last = profile.plan_energy_j(model.solve(float(budgets[-1]) * (1 + 1e-9)))
    assert last == pytest.approx(cheapest_j(profile, math.inf), rel=1e-5)


@pytest.mark.parametrize("conversions", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_realistic_profiles_are_solved_too(conversions: bool, seed: int) -> None:
    profile = make_profile(5, conversions=conversions, seed=seed, missing={1: ("int2",)})
    model = AdditiveModel(profile)
    for budget in model.budgets(8):
        require_optimum(profile, model, float(budget))


def test_more_budget_never_costs_more_energy() -> None:
    profile = make_profile(12, ALL)
    model = AdditiveModel(profile)
    energies_j = [profile.plan_energy_j(model.solve(float(b))) for b in model.budgets(15)]
    slack = profile.reference_energy_j * ROUNDING
    assert all(after <= before + slack for before, after in pairwise(energies_j))


@pytest.mark.parametrize("conversions", [False, True])
def test_two_hundred_layers_are_solved_at_least_as_well_as_greedily(conversions: bool) -> None:
    profile = make_profile(200, ALL, conversions=conversions)
    path = greedy_path(profile)
    greedy = path[len(path) // 2]
    budget = profile.plan_sensitivity(greedy)
    found = AdditiveModel(profile).solve(budget)
    assert profile.plan_sensitivity(found) <= budget * (1.0 + ROUNDING)
    assert profile.plan_energy_j(found) <= profile.plan_energy_j(greedy)


def test_a_budget_of_nothing_allows_what_costs_no_sensitivity() -> None:
    profile = make_profile(3)
    free = replace(profile.layers[1].costs["int8"], sensitivity=0.0)
    layer = replace(profile.layers[1], costs={**profile.layers[1].costs, "int8": free})
    free_profile = replace(profile, layers=(profile.layers[0], layer, profile.layers[2]), conversion_j={})
    assert AdditiveModel(profile).solve(0.0) == profile.reference_plan
    expected = profile.reference_plan.replace(**{layer.name: "int8"})
    assert AdditiveModel(free_profile).solve(0.0) == expected


@pytest.mark.parametrize("budget", [-1e-9, -math.inf, math.nan])
def test_a_negative_budget_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        AdditiveModel(make_profile(2)).solve(budget)


def test_where_not_even_the_reference_fits_it_is_the_answer() -> None:
    profile = make_profile(2)
    costs = {name: replace(c, sensitivity=1.0) for name, c in profile.layers[0].costs.items()}
    disturbed = replace(profile, layers=(replace(profile.layers[0], costs=costs), profile.layers[1]))
    assert AdditiveModel(disturbed).solve(0.5) == profile.reference_plan


def test_a_solver_that_runs_out_of_time_leaves_the_best_plan_of_the_relaxation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = make_profile(8, ALL)
    model = AdditiveModel(profile)
    exact = [model.solve(float(budget)) for budget in model.budgets(10)]
    asked: list[Any] = []

    class Nothing:
        x = None

    def out_of_time(*arguments: Any, **options: Any) -> Nothing:
        asked.append(options)
        return Nothing()

    monkeypatch.setattr(agents.additive, "milp", out_of_time)
    for budget, plan in zip(model.budgets(10), exact, strict=True):
        rough = model.solve(float(budget))
        assert isinstance(rough, PrecisionPlan)
        assert profile.plan_sensitivity(rough) <= budget
        assert profile.plan_energy_j(rough) >= profile.plan_energy_j(plan) - 1e-6 * profile.reference_energy_j
        assert profile.plan_energy_j(rough) <= profile.reference_energy_j
    assert asked
