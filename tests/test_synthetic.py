"""The made-up network: plausible at any depth, repeatable, and its optimum is the optimum."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.additive import AdditiveModel
from envs.chain import cheapest_chain
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator
from wattbit.errors import ConfigError, PlanError, PrecisionError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

TOLERANCES_PP = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0)


def random_plan(profile: ModelProfile, seed: int) -> PrecisionPlan:
    names = np.random.default_rng(seed).choice(profile.precisions, len(profile.layers)).tolist()
    return PrecisionPlan(dict(zip(profile.layer_names, names, strict=True)))


def every_plan(profile: ModelProfile) -> list[PrecisionPlan]:
    names = product(profile.precisions, repeat=len(profile.layers))
    return [PrecisionPlan(dict(zip(profile.layer_names, chosen, strict=True))) for chosen in names]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_cheapest_chain_is_the_cheapest_of_all_chains(data: st.DataObject) -> None:
    positions, choices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    limit = data.draw(st.integers(0, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    cost = rng.normal(size=(positions, choices, choices))
    score = rng.integers(0, 6, (positions, choices, choices))

    def total(table: np.ndarray, path: tuple[int, ...]) -> float:
        return float(sum(table[i, a, b] for i, (a, b) in enumerate(zip((0, *path), path, strict=False))))

    paths = [p for p in product(range(choices), repeat=positions) if total(score, p) <= limit]
    found = cheapest_chain(cost, score, limit)
    if found is None:
        assert not paths
    else:
        assert total(score, found) <= limit
        assert total(cost, found) == pytest.approx(min(total(cost, p) for p in paths))


def test_a_chain_of_negative_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="least score is -1"):
        cheapest_chain(np.zeros((1, 2, 2)), np.full((1, 2, 2), -1), 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_six_layers_is_the_cheapest_of_all_4096_plans(seed: int) -> None:
    network = SyntheticEvaluator(6, samples=2000, seed=seed)
    outcomes = network.evaluate_all(every_plan(network.profile))
    for tolerance_pp, gate in product(TOLERANCES_PP, (None, SearchGate(0.2))):
        judge = gate or SearchGate(0.5)
        passing = [o for o in outcomes if judge.passes(o.counts, tolerance_pp)]
        best = network.optimum(tolerance_pp, gate)
        assert judge.passes(best.counts, tolerance_pp)
        assert best.energy_j == pytest.approx(min(o.energy_j for o in passing), rel=1e-12)


def test_the_optimum_is_the_reference_where_nothing_passes_the_gate() -> None:
    network = SyntheticEvaluator(3, samples=10)
    assert network.optimum(0.5, SearchGate(0.01)).plan == network.profile.reference_plan


def test_the_optimum_at_any_drop_is_the_cheapest_plan_of_all() -> None:
    network = SyntheticEvaluator(5)
    cheapest = min(network.evaluate_all(every_plan(network.profile)), key=lambda o: o.energy_j)
    assert network.optimum(100.0).energy_j == pytest.approx(cheapest.energy_j, rel=1e-12)


@pytest.mark.parametrize("layers", [1, 8, 50, 200])
def test_uniform_plans_drop_alike_at_any_depth(layers: int) -> None:
    network = SyntheticEvaluator(layers, seed=layers)
    names = network.profile.layer_names
    drops = {p: network.evaluate(PrecisionPlan.uniform(names, p)).drop_pp for p in network.profile.precisions}
    assert drops["fp16"] == 0.0
    assert 0.2 <= drops["int8"] <= 0.4
    assert 4.0 <= drops["int4"] <= 8.0
    assert 20.0 <= drops["int3"] <= 45.0


@settings(deadline=None, max_examples=30)
@given(layers=st.integers(1, 60), seed=st.integers(0, 1000))
def test_energy_and_time_are_those_of_the_profile_to_the_last_bit(layers: int, seed: int) -> None:
    network = SyntheticEvaluator(layers, seed=seed)
    outcome = network.evaluate(random_plan(network.profile, seed))
    assert outcome.energy_j == network.profile.plan_energy_j(outcome.plan)
    assert outcome.latency_ms == pytest.approx(network.profile.plan_latency_ms(outcome.plan), rel=1e-12)
    assert outcome.divergence >= 0.0


def test_a_sensitivity_is_the_divergence_of_the_plan_in_which_only_that_layer_changes() -> None:
    network = SyntheticEvaluator(12, seed=3)
    reference = network.profile.reference_plan
    assert network.evaluate(reference).divergence == 0.0
    for layer in network.profile.layers:
        for name in ("int8", "int4", "int3"):
            alone = network.evaluate(reference.replace(**{layer.name: name}))
            assert alone.divergence == pytest.approx(layer.costs[name].sensitivity)


def test_neighbours_interact_in_ways_that_single_layers_do_not_show() -> None:
    network = SyntheticEvaluator(50, seed=1)
    names, reference = network.profile.layer_names, network.profile.reference_plan
    ratios = []
    for a, b in pairwise(names):
        both = network.evaluate(reference.replace(**{a: "int3", b: "int3"})).divergence
        apart = sum(network.evaluate(reference.replace(**{n: "int3"})).divergence for n in (a, b))
        ratios.append(both / apart)
    assert min(ratios) < 0.8
    assert max(ratios) > 1.8


def test_the_additive_optimum_is_decent_but_beaten_by_the_true_one() -> None:
    network = SyntheticEvaluator(50)
    model = AdditiveModel(network.profile)
    found = network.evaluate_all([model.solve(float(nats)) for nats in model.budgets(40)])
    regrets = []
    for tolerance_pp in TOLERANCES_PP:
        best = min(o.energy_j for o in found if o.drop_pp <= tolerance_pp)
        regrets.append(best / network.optimum(tolerance_pp).energy_j - 1.0)
    assert min(regrets) >= 0.0
    assert 0.01 < np.mean(regrets) < 0.12


def test_the_same_seed_is_the_same_network_and_another_seed_another() -> None:
    one, same, other = (
        SyntheticEvaluator(9, seed=5),
        SyntheticEvaluator(9, seed=5),
        SyntheticEvaluator(9, seed=6),
    )
    plan = random_plan(one.profile, 0)
    assert one.profile == same.profile
    assert one.evaluate(plan) == same.evaluate(plan)
    assert one.profile != other.profile


def test_evaluations_count_distinct_plans_and_the_optimum_none() -> None:
    network = SyntheticEvaluator(4)
    plans = [random_plan(network.profile, seed) for seed in (0, 1, 0)]
    assert [o.plan for o in network.evaluate_all(plans)] == plans
    network.optimum(1.0)
    assert network.evaluations == 2


def test_other_precisions_can_be_had() -> None:
    network = SyntheticEvaluator(5, precisions=("fp32", "bf16", "int6", "int2"))
    assert network.profile.precisions == ("fp32", "bf16", "int6", "int2")
    drops = [network.evaluate(PrecisionPlan.uniform(network.profile.layer_names, p)).drop_pp
             for p in network.profile.precisions]  # fmt: skip
    assert drops == sorted(drops)


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers is 0, must be at least 1"):
        SyntheticEvaluator(0)
    with pytest.raises(ConfigError, match="samples is 0"):
        SyntheticEvaluator(3, samples=0)
    with pytest.raises(ConfigError, match="at least 2"):
        SyntheticEvaluator(3, precisions=("fp16",))
    with pytest.raises(PrecisionError, match="nvfp4"):
        SyntheticEvaluator(3, precisions=("fp16", "nvfp4"))
    with pytest.raises(ConfigError, match="tolerance is -1"):
        SyntheticEvaluator(3).optimum(-1.0)


def test_a_plan_of_another_network_is_refused() -> None:
    network = SyntheticEvaluator(3)
    with pytest.raises(PlanError, match="which the model lacks"):
        network.evaluate(SyntheticEvaluator(4).profile.reference_plan)
    with pytest.raises(PlanError, match="missing"):
        network.evaluate(SyntheticEvaluator(2).profile.reference_plan)
    with pytest.raises(PlanError, match="int6"):
        network.evaluate(PrecisionPlan.uniform(network.profile.layer_names, "int6"))
