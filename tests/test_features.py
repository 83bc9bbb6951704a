"""What the policy sees: bounded, finite, of one size, and named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_strategies import profiles

from wattbit.errors import GuardrailError
from wattbit.features import Context, FeatureEncoder, PlanBuilder
from wattbit.profile import LayerProfile, ModelProfile

RELAXED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def encoder_of(profile: ModelProfile, pp_per_nat: float = 20.0) -> FeatureEncoder:
    return FeatureEncoder(profile, pp_per_nat)


def first_actions(profile: ModelProfile, action: int) -> PlanBuilder:
    builder = PlanBuilder(encoder_of(profile), Context(1.0))
    while not builder.done:
        builder.assign(action)
    return builder


@given(
    profile=profiles(),
    tolerance_pp=st.floats(1e-6, 100.0),
    price=st.floats(1e-6, 1e6),
    pp_per_nat=st.floats(0.0, 1e6),
    data=st.data(),
)
@RELAXED
def test_every_observation_is_bounded_finite_and_of_one_size(
    profile: ModelProfile, tolerance_pp: float, price: float, pp_per_nat: float, data: st.DataObject
) -> None:
    encoder = encoder_of(profile, pp_per_nat)
    builder = PlanBuilder(encoder, Context(tolerance_pp, price))
    while True:
        observation = builder.observation
        assert observation.shape == (encoder.size,)
        assert observation.dtype == np.float32
        assert np.isfinite(observation).all()
        assert np.abs(observation).max() <= encoder.bound
        if builder.done:
            break
        builder.assign(data.draw(st.sampled_from(np.flatnonzero(builder.mask).tolist())))


def test_every_feature_has_a_name_of_its_own(profile: ModelProfile) -> None:
    encoder = encoder_of(profile)
    assert len(encoder.names) == len(set(encoder.names)) == encoder.size


def test_features_are_where_their_names_say(profile: ModelProfile) -> None:
    encoder = encoder_of(profile)
    builder = PlanBuilder(encoder, Context(0.1, 10.0))
    builder.assign(2)
    seen = dict(zip(encoder.names, builder.observation.tolist(), strict=True))
    layer = profile.layers[1]
    assert seen["tolerance_log10_pp"] == pytest.approx(-1.0)
    assert seen["energy_price_log10"] == pytest.approx(1.0)
    assert (seen["kind_conv2d"], seen["kind_depthwise_conv2d"], seen["kind_linear"]) == (0.0, 1.0, 0.0)
    assert seen["depth"] == pytest.approx(1 / 3)
    assert (seen["previous_none"], seen["previous_int8"], seen["previous_fp32"]) == (0.0, 1.0, 0.0)
    committed_j = profile.step_energy_j(0, "int8", None)
    assert seen["energy_committed"] == pytest.approx(committed_j / profile.reference_energy_j, rel=1e-5)
    ratio = layer.costs["int4"].energy_j / layer.costs["fp32"].energy_j
    assert seen["energy_ratio_int4"] == pytest.approx(ratio, rel=1e-5)
    assert seen["supported_mxfp4"] == 1.0


def test_a_precision_the_layer_lacks_is_masked(profile: ModelProfile) -> None:
    first, *rest = profile.layers
    costs = {name: cost for name, cost in first.costs.items() if name != "int8"}
    narrower = replace(profile, layers=(LayerProfile(first.shape, costs), *rest))
    encoder = encoder_of(narrower)
    builder = PlanBuilder(encoder, Context(1.0))
    assert builder.mask.tolist() == [True, True, False, True, True]
    assert dict(zip(encoder.names, builder.observation, strict=True))["supported_int8"] == 0.0
    with pytest.raises(
        ValueError, match=r"layer 'stem' does not support 'int8': choose among fp32, bf16, int4"
    ):
        builder.assign(2)
    assert builder.layer_index == 0


# --- building ----------------------------------------------------------------------------------------------


@given(st.data())
@RELAXED
def test_steps_add_up_to_the_energy_of_the_plan(data: st.DataObject) -> None:
    profile = data.draw(profiles())
    builder = PlanBuilder(encoder_of(profile), Context(1.0))
    energies_j = []
    while not builder.done:
        energies_j.append(builder.assign(data.draw(st.sampled_from(np.flatnonzero(builder.mask).tolist()))))
    total_j = math.fsum(energies_j) + (profile.other_energy_j or 0.0)
    assert total_j == pytest.approx(profile.plan_energy_j(builder.plan))
    assert list(builder.plan) == list(profile.layer_names)


def test_layers_not_reached_yet_stay_at_the_reference(profile: ModelProfile) -> None:
    builder = PlanBuilder(encoder_of(profile), Context(1.0))
    assert (builder.previous, builder.layer_index, builder.done) == (None, 0, False)
    assert builder.plan == profile.reference_plan
    builder.assign(3)
    assert list(builder.plan.values()) == ["int4", "fp32", "fp32", "fp32"]
    assert (builder.previous, builder.layer_index) == ("int4", 1)
    assert builder.context == Context(1.0)


def test_a_complete_plan_sees_zeros_and_takes_no_more_actions(profile: ModelProfile) -> None:
    builder = first_actions(profile, 0)
    assert not builder.observation.any()
    assert builder.mask.all()
    assert builder.plan == profile.reference_plan
    with pytest.raises(IndexError, match="every layer has its precision already"):
        builder.assign(0)


@pytest.mark.parametrize("action", [-1, 5, 100])
def test_an_action_that_does_not_exist_is_refused_and_not_wrapped_around(
    profile: ModelProfile, action: int
) -> None:
    builder = PlanBuilder(encoder_of(profile), Context(1.0))
    with pytest.raises(ValueError, match="must be from 0 to 4"):
        builder.assign(action)
    assert builder.layer_index == 0


def test_an_action_may_be_a_numpy_integer(profile: ModelProfile) -> None:
    builder = PlanBuilder(encoder_of(profile), Context(1.0))
    builder.assign(np.int64(1))
    assert builder.previous == "bf16"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_context_that_makes_no_sense_is_refused(value: float) -> None:
    with pytest.raises(
        GuardrailError, match=r"tolerance is .*, must be a finite number above 0; 1.0 is usual"
    ):
        Context(value)
    with pytest.raises(GuardrailError, match="energy price is"):
        Context(1.0, value)
