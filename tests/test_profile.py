"""The profile: the additive model of a plan's energy, and a JSON form that answers every mistake."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_strategies import plans, profiles

from wattbit.errors import PlanError
from wattbit.plan import PrecisionPlan
from wattbit.profile import LayerProfile, ModelProfile


@given(profiles())
@settings(deadline=None, max_examples=50)
def test_a_profile_survives_its_json(profile: ModelProfile) -> None:
    assert ModelProfile.from_json(profile.to_json()) == profile


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_the_energy_of_a_plan_is_what_its_layers_and_the_conversions_between_them_cost(
    data: st.DataObject,
) -> None:
    profile = data.draw(profiles())
    plan = data.draw(plans(profile))
    names = list(plan.values())
    expected = [profile.other_energy_j or 0.0]
    expected += [layer.costs[plan[layer.name]].energy_j for layer in profile.layers]
    expected += [
        profile.conversion_j.get(f"{before}->{after}", 0.0) * layer.shape.input_elements
        for layer, (before, after) in zip(profile.layers, pairwise(["fp32", *names]), strict=True)
    ]
    assert profile.plan_energy_j(plan) == pytest.approx(math.fsum(expected), rel=1e-9)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_latency_memory_and_sensitivity_add_up(data: st.DataObject) -> None:
    profile = data.draw(profiles())
    plan = data.draw(plans(profile))
    costs = [layer.costs[plan[layer.name]] for layer in profile.layers]
    latency_ms = (profile.other_latency_ms or 0.0) + sum(cost.latency_ms for cost in costs)
    assert profile.plan_latency_ms(plan) == pytest.approx(latency_ms)
    assert profile.plan_memory_bytes(plan) == sum(cost.memory_bytes for cost in costs)
    assert profile.plan_sensitivity(plan) == pytest.approx(sum(cost.sensitivity for cost in costs))


def test_the_reference_plan_saves_nothing_and_a_narrower_one_something(profile: ModelProfile) -> None:
    int8 = PrecisionPlan.uniform(profile.layer_names, "int8")
    assert profile.saving(profile.reference_energy_j) == 0.0
    assert 0.5 < profile.saving(profile.plan_energy_j(int8)) < 1.0
    assert profile.reference == "fp32"
    assert set(profile.reference_plan.values()) == {"fp32"}


def test_a_layer_pays_for_the_conversion_of_its_input(profile: ModelProfile) -> None:
    index = 2
    elements = profile.layers[index].shape.input_elements
    expected = elements * profile.conversion_j["fp32->int8"]
    assert profile.conversion_energy_j(index, "int8", "fp32") == expected
    assert profile.conversion_energy_j(index, "int8", "int8") == 0.0
    assert profile.conversion_energy_j(0, "int8", None) == profile.conversion_energy_j(0, "int8", "fp32")
    step = profile.step_energy_j(index, "int8", "fp32")
    assert step == profile.layers[index].costs["int8"].energy_j + expected


def test_a_plan_is_put_in_execution_order(profile: ModelProfile) -> None:
    plan = PrecisionPlan(dict.fromkeys(reversed(profile.layer_names), "int8"))
    assert list(profile.require_plan(plan)) == list(profile.layer_names)


def test_a_plan_for_another_model_is_refused(profile: ModelProfile) -> None:
    with pytest.raises(PlanError, match="plan names layer 'tail'"):
        profile.require_plan(PrecisionPlan({"tail": "int8"}))


def test_a_precision_that_a_layer_does_not_support_is_refused(profile: ModelProfile) -> None:
    first, *rest = profile.layers
    narrower = replace(profile, layers=(LayerProfile(first.shape, {"fp32": first.costs["fp32"]}), *rest))
    assert narrower.supported(0) == ("fp32",)
    assert narrower.supported(1) == profile.precisions
    with pytest.raises(
        PlanError, match=r"layer 'stem' cannot run at 'int8' in this profile \(modelled energy\)"
    ):
        narrower.require_plan(PrecisionPlan.uniform(profile.layer_names, "int8"))


def test_a_profile_that_holds_nan_cannot_be_written(profile: ModelProfile) -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(profile, other_energy_j=math.nan).to_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["layers"], []),
        (["layers"], {"a": 1}),
        (["layers", 0, "shape", "name"], 3),
        (["layers", 0, "shape", "kind"], "conv5d"),
        (["layers", 0, "shape", "macs"], 0),
        (["layers", 0, "shape", "macs"], "many"),
        (["layers", 0, "shape", "depth"], -1.0),
        (["layers", 0, "shape", "colour"], 1),
        (["layers", 1, "shape", "name"], "stem"),
        (["layers", 0, "costs"], []),
        (["layers", 0, "costs"], {}),
        (["layers", 0, "costs", "int9"], {}),
        (["layers", 0, "costs", "fp32", "energy_j"], 0.0),
        (["layers", 0, "costs", "fp32", "energy_j"], -1.0),
        (["layers", 0, "costs", "fp32", "energy_j"], None),
        (["layers", 0, "costs", "fp32", "energy_j"], math.nan),
        (["layers", 0, "costs", "fp32", "energy_j"], True),
        (["layers", 0, "costs", "fp32", "native"], "yes"),
        (["layers", 0, "costs", "fp32", "energy_rel_std"], "small"),
        (["precisions"], []),
        (["precisions"], ["int8", "int9"]),
        (["precisions"], ["int8"]),
        (["provenance"], "guessed"),
        (["device"], 3),
        (["conversion_j"], [1]),
        (["conversion_j", "fp32->int8"], math.inf),
        (["other_energy_j"], "none"),
    ],
)
def test_a_garbled_profile_is_refused_in_one_line(profile: ModelProfile, path: list[Any], value: Any) -> None:
    data = json.loads(profile.to_json())
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(ValueError) as error:
        ModelProfile.from_json(json.dumps(data))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "key", ["layers", "precisions", "provenance", "device", "conversion_j", "other_energy_j"]
)
def test_a_profile_that_lacks_something_is_refused(profile: ModelProfile, key: str) -> None:
    data = json.loads(profile.to_json())
    del data[key]
    with pytest.raises(ValueError, match=f"profile lacks or garbles '{key}'"):
        ModelProfile.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"schema": 1}'])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ModelProfile.from_json(text)
