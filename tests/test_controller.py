"""The controller: the cheapest certified plan that fits the tolerance, and otherwise the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.errors import BundleError, GuardrailError
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import PrecisionController

STRICT, LOOSE = tiny.DEPLOYED


def names(plan: PrecisionPlan) -> set[str]:
    return set(plan.values())


@pytest.fixture
def controller(bundle: ControllerBundle) -> PrecisionController:
    return PrecisionController(bundle)


@pytest.mark.parametrize(
    ("tolerance_pp", "precision"),
    [(0.1, "fp32"), (1.99, "fp32"), (2.0, "bf16"), (9.99, "bf16"), (10.0, "int8"), (50.0, "int8")],
)
def test_the_cheapest_plan_certified_at_the_tolerance_or_stricter_is_chosen(
    controller: PrecisionController, tolerance_pp: float, precision: str
) -> None:
    decision = controller.decide(tolerance_pp)
    assert names(decision.plan) == {precision}
    assert (decision.certified is None) == (precision == "fp32")
    if decision.certified is not None:
        assert decision.certified.plan == decision.plan


def test_a_decision_says_why(controller: PrecisionController) -> None:
    assert controller.decide(10.0).reason == "cheapest plan certified at 10 pp"
    assert controller.decide(0.5).reason == "no plan is certified at 0.5 pp or stricter"


def test_a_stricter_plan_that_is_cheaper_wins(bundle: ControllerBundle) -> None:
    strict, loose = bundle.plans
    cheap = replace(bundle, plans=(replace(strict, energy_j=loose.energy_j / 2), loose))
    assert PrecisionController(cheap).decide(10.0).plan == strict.plan


def test_without_certified_plans_the_reference_runs(bundle: ControllerBundle) -> None:
    controller = PrecisionController(replace(bundle, plans=(), certificates=()))
    assert controller.decide(100.0).plan == controller.reference_plan
    assert list(controller.certified) == []


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
@settings(deadline=None, max_examples=50)
def test_accepting_a_larger_drop_never_costs_more(one: float, other: float) -> None:
    controller = PrecisionController(tiny.bundle())
    profile = controller.bundle.profile
    low, high = (profile.plan_energy_j(controller.decide(t).plan) for t in sorted((one, other)))
    assert high <= low


@pytest.mark.parametrize("tolerance_pp", [0.0, -1.0, math.nan])
def test_a_tolerance_that_makes_no_sense_is_refused(
    controller: PrecisionController, tolerance_pp: float
) -> None:
    with pytest.raises(GuardrailError, match=r"tolerance is .* pp, must be above 0; 1.0 is the usual choice"):
        controller.decide(tolerance_pp)
    with pytest.raises(GuardrailError, match="tolerance is"):
        controller.propose(tolerance_pp)


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: replace(bundle, certificates=()),
        lambda bundle: replace(bundle, certificates=bundle.certificates[1:]),
        lambda bundle: replace(bundle, plans=(replace(bundle.plans[0], verdict="inconclusive"),)),
        lambda bundle: replace(bundle, plans=(replace(bundle.plans[0], verdict=None),)),
        lambda bundle: replace(bundle, plans=(replace(bundle.plans[1], tolerance_pp=1.0),)),
        lambda bundle: replace(
            bundle, plans=(replace(bundle.plans[0], plan=bundle.plans[0].plan.replace(stem="int4")),)
        ),
    ],
)
def test_a_plan_that_no_certificate_passes_does_not_run(
    bundle: ControllerBundle, change: Callable[[ControllerBundle], ControllerBundle]
) -> None:
    with pytest.raises(
        BundleError, match="is passed by no certificate of the bundle; export the bundle again"
    ):
        PrecisionController(change(bundle))


def test_a_controller_is_loaded_from_a_folder(bundle_dir: Path) -> None:
    controller = PrecisionController.load(bundle_dir)
    assert names(controller.decide(10.0).plan) == {"int8"}
    assert [plan.tolerance_pp for plan in controller.certified] == [2.0, 10.0]
    assert controller.bundle.workload == {"name": "tiny"}


def test_the_policy_proposes_a_plan_for_any_tolerance(controller: PrecisionController) -> None:
    plan = controller.propose(0.37)
    assert controller.bundle.profile.require_plan(plan) == plan
    assert controller.propose(0.37) == plan


def test_without_a_policy_nothing_is_proposed(bundle: ControllerBundle) -> None:
    with pytest.raises(BundleError, match=r"the bundle carries no policy.npz; train with agent=ppo"):
        PrecisionController(replace(bundle, policy=None)).propose(1.0)


def test_a_policy_with_other_features_is_refused(bundle: ControllerBundle) -> None:
    policy = bundle.policy
    assert policy is not None
    narrow = replace(policy, weights=(policy.weights[0][:, 1:], policy.weights[1]))
    with pytest.raises(BundleError, match=r"policy.npz does not fit profile.json"):
        PrecisionController(replace(bundle, policy=narrow)).propose(1.0)
