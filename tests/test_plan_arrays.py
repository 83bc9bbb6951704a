"""Plans as arrays: the same plans and the same energies, many at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_profile

from agents.surrogate.plan_arrays import PlanArrays
from wattbit.errors import PlanError
from wattbit.plan import PrecisionPlan


@settings(deadline=None, max_examples=40)
@given(
    layers=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    conversions=st.booleans(),
    other_j=st.one_of(st.none(), st.floats(0.0, 1e-6)),
)
def test_energies_are_those_of_the_profile_and_plans_come_back(
    layers: int, seed: int, conversions: bool, other_j: float | None
) -> None:
    profile = make_profile(layers, seed=seed, conversions=conversions, other_energy_j=other_j)
    arrays = PlanArrays.of(profile)
    indices = np.random.default_rng(seed).integers(0, 5, (7, layers))
    plans = arrays.plans(indices)
    assert (arrays.indices(plans) == indices).all()
    assert arrays.energies_j(indices) == pytest.approx(
        [profile.plan_energy_j(plan) for plan in plans], rel=1e-12
    )
    assert arrays.sensitivities(indices).sum(axis=1) == pytest.approx(
        [profile.plan_sensitivity(plan) for plan in plans], rel=1e-12
    )


def test_the_order_in_which_a_plan_names_its_layers_does_not_matter() -> None:
    profile = make_profile(3)
    plan = PrecisionPlan(dict(zip(profile.layer_names, ("int8", "fp32", "int2"), strict=True)))
    turned = PrecisionPlan({layer: plan[layer] for layer in reversed(profile.layer_names)})
    assert PlanArrays.of(profile).indices([plan, turned]).tolist() == [[2, 0, 4], [2, 0, 4]]


def test_what_a_layer_does_not_support_costs_infinitely_much() -> None:
    arrays = PlanArrays.of(make_profile(2, missing={1: ("int8",)}))
    assert arrays.supported.tolist() == [[True] * 5, [True, True, False, True, True]]
    assert np.isinf(arrays.energies_j(np.array([[0, 2]]))).all()


def test_no_plans_are_an_empty_array() -> None:
    arrays = PlanArrays.of(make_profile(3))
    none = arrays.indices([])
    assert none.shape == (0, 3)
    assert arrays.plans(none) == []
    assert arrays.energies_j(none).shape == (0,)


@pytest.mark.parametrize("plan", [{"other": "int8"}, {"block.0": "int3"}])
def test_a_plan_of_another_model_is_refused(plan: dict[str, str]) -> None:
    with pytest.raises(PlanError, match="give plans of the profiled model"):
        PlanArrays.of(make_profile(1)).indices([PrecisionPlan(plan)])
