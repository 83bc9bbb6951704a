"""Groups of layers: costs add up, conversions stay, and groups that do not fit the model are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_profile

from envs.grouping import group_profile, layer_plan, require_groups
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan

NAMES = ("fp16", "int8", "int3")
GROUPS = {"first": ["block.0"], "pair": ["block.1", "block.2"], "last": ["block.3"]}


@settings(deadline=None, max_examples=40)
@given(chosen=st.tuples(*[st.sampled_from(NAMES)] * 3), seed=st.integers(0, 20))
def test_a_plan_of_groups_costs_what_its_layers_cost(chosen: tuple[str, ...], seed: int) -> None:
    profile = make_profile(4, NAMES, seed=seed, other_energy_j=1e-7)
    grouped = group_profile(profile, GROUPS, {})
    plan = PrecisionPlan(dict(zip(GROUPS, chosen, strict=True)))
    layers = layer_plan(GROUPS, plan)
    assert list(layers) == list(profile.layer_names)
    assert grouped.plan_energy_j(plan) == pytest.approx(profile.plan_energy_j(layers), rel=1e-12)
    assert grouped.plan_latency_ms(plan) == pytest.approx(profile.plan_latency_ms(layers), rel=1e-12)
    assert grouped.plan_memory_bytes(plan) == profile.plan_memory_bytes(layers)


def test_a_group_has_the_size_of_its_layers_and_the_kind_of_the_largest() -> None:
    profile = make_profile(4, NAMES)
    grouped = group_profile(profile, GROUPS, {("pair", "int8"): (0.25, 0.5)})
    first, pair, last = (layer.shape for layer in grouped.layers)
    parts = [layer.shape for layer in profile.layers[1:3]]
    assert pair.macs == sum(part.macs for part in parts)
    assert pair.weight_elements == sum(part.weight_elements for part in parts)
    assert pair.input_elements == parts[0].input_elements
    assert pair.output_elements == parts[1].output_elements
    assert pair.kind == max(parts, key=lambda part: part.macs).kind
    assert [first.depth, pair.depth, last.depth] == [0.0, 0.5, 1.0]
    assert grouped.layers[1].costs["int8"].sensitivity == 0.25
    assert grouped.layers[1].costs["int8"].sensitivity_std == 0.5
    assert grouped.layers[1].costs["fp16"].sensitivity == 0.0


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"a": ["block.0"], "b": ["block.2", "block.1"]}, "'block.2' where 'block.1' runs"),
        ({"a": ["block.0"], "b": ["block.1"]}, "2 layers, the model has 3"),
        ({"a": ["block.0"], "b": ["block.1", "block.2", "block.3"]}, "4 layers, the model has 3"),
        ({"a": ["block.0", "block.1", "block.2"], "b": []}, "at least one a group"),
    ],
)
def test_groups_that_do_not_fit_the_layers_are_refused(groups: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        require_groups(groups, ["block.0", "block.1", "block.2"])
