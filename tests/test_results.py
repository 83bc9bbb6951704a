"""What ends up in results.json and in the bundle: every figure a number or null, and PPO never the loser."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from synthetic import Comparisons, StubModel, SyntheticEvaluator, make_profile

from agents.archive import Archive
from agents.baselines import ILP, Greedy, Random, Uniform
from agents.ppo import PPO
from agents.search_comparison import SearchComparison
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from pipeline.certification import Deployment, SplitEvaluator, certify_tolerance
from pipeline.collect_results import (
    archive_records,
    bundled_plans,
    compared_plan,
    deployed_records,
    found_plans,
    plan_record,
    profile_record,
    sequence_records,
)
from wattbit.guardrail import Guardrail
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(4, missing={1: ("bf16",)})
TOLERANCES = (0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchComparison]:
    """A search by every method."""
    comparisons = Comparisons(tmp_path_factory.mktemp("run"))
    made = comparisons.make(SyntheticEvaluator(PROFILE))
    for method in (Uniform(), Greedy(), ILP(), Random()):
        made.run(method, 15, 0)
    made.run(
        PPO(
            make_env=partial(LayerPrecisionEnv, gate=SearchGate()),
            total_timesteps=512,
            n_envs=4,
            episodes_per_rollout=16,
            net_arch=[16],
            imitation_updates=20,
        ),
        60,
        0,
        seeded=True,
    )
    yield made
    comparisons.close()


def held_out(samples: int = 2000) -> SplitEvaluator:
    """A split that agrees with the search split."""
    evaluator = SyntheticEvaluator(PROFILE, samples=samples)
    return StubModel(PROFILE, lambda plan: evaluator.evaluate(plan).counts.reference_only).held_out(samples)


@pytest.fixture(scope="module")
def deployments(comparison: SearchComparison) -> list[Deployment]:
    split = held_out()
    return [certify_tolerance(comparison.archive, split, PROFILE, Guardrail(t)) for t in TOLERANCES]


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_ppo_never_costs_more_than_the_best_of_uniform_greedy_and_ilp(comparison: SearchComparison) -> None:
    found = found_plans(comparison.runs, {}, PROFILE, TOLERANCES)
    outcomes = {plan.plan: comparison.evaluator.evaluate(plan.plan) for plan in found}
    for tolerance in TOLERANCES:
        here = [plan for plan in found if plan.tolerance_pp == tolerance]
        (ppo,) = [plan for plan in here if plan.method == "ppo"]
        rivals = [p for p in here if comparison.archive.passes(outcomes[p.plan], tolerance)]
        assert {plan.method for plan in rivals} >= {"greedy", "ilp", "uniform_fp32"}
        assert outcomes[ppo.plan].energy_j <= min(outcomes[plan.plan].energy_j for plan in rivals)


def test_every_method_has_a_plan_for_every_tolerance_and_uniform_plans_have_each_their_own(
    comparison: SearchComparison,
) -> None:
    policy = dict.fromkeys(TOLERANCES[:2], PROFILE.reference_plan)
    found = found_plans(comparison.runs, policy, PROFILE, TOLERANCES)
    methods = [
        "uniform_fp32",
        "uniform_int8",
        "uniform_int4",
        "uniform_int2",
        "greedy",
        "ilp",
        "random",
        "ppo",
    ]
    for tolerance in TOLERANCES:
        names = [plan.method for plan in found if plan.tolerance_pp == tolerance]
        assert names == ([*methods, "policy"] if tolerance in policy else methods)
    uniform = next(plan for plan in found if plan.method == "uniform_int8")
    assert uniform.plan == PrecisionPlan.uniform(PROFILE.layer_names, "int8")
    assert uniform.evaluations == 1
    ppo = next(plan for plan in found if plan.method == "ppo")
    learned = next(plan for plan in found if plan.method == "policy")
    assert ppo.evaluations == learned.evaluations == len(comparison.archive)


def test_an_interrupted_comparison_has_plans_of_the_methods_that_ran(tmp_path: Path) -> None:
    comparisons = Comparisons(tmp_path)
    comparison = comparisons.make(SyntheticEvaluator(PROFILE))
    comparison.run(Uniform(), 2, 0)
    comparison.stop.request()
    comparison.run(Greedy(), 10, 0)
    comparisons.close()
    found = found_plans(comparison.runs, {}, PROFILE, (1.0,))
    assert [plan.method for plan in found] == ["uniform_fp32", "uniform_int8", "greedy"]
    assert found[-1].plan == PROFILE.reference_plan


@pytest.mark.parametrize("looked", [True, False])
def test_a_plan_record_is_json_and_null_where_nobody_looked(
    comparison: SearchComparison, looked: bool
) -> None:
    certify, test = (held_out(), held_out(500)) if looked else (None, None)
    for found in found_plans(comparison.runs, {}, PROFILE, (1.0,)):
        record = plan_record(found, comparison.evaluator, certify, test, Guardrail(1.0))
        assert as_json(record) == {**record, "precisions": dict(record["precisions"])}
        assert record["plan_id"] == found.plan.plan_id
        assert record["saving"] == pytest.approx(1 - record["energy_j"] / PROFILE.reference_energy_j)
        assert record["memory_bytes"] == PROFILE.plan_memory_bytes(found.plan)
        measured = [
            record[f"{split}_{kind}"] for split in ("certify", "test") for kind in ("drop_pp", "interval_pp")
        ]
        if looked:
            assert record["verdict"] in {"pass", "fail", "inconclusive"}
            assert record["reason"]
            assert measured[1][0] <= measured[0] <= measured[1][1]
        else:
            assert record["verdict"] is None
            assert record["reason"] == ""
            assert measured == [None] * 4


def test_a_plan_is_compared_with_the_figures_of_its_record(comparison: SearchComparison) -> None:
    found = found_plans(comparison.runs, {}, PROFILE, (1.0,))[-1]
    for certify in (held_out(), None):
        record = plan_record(found, comparison.evaluator, certify, None, Guardrail(1.0))
        compared = compared_plan(as_json(record), PROFILE)
        assert compared.plan == found.plan
        assert compared.drop_pp == record["certify_drop_pp"]
        assert compared.verdict == record["verdict"]
        assert compared.provenance == "modelled"


def test_what_is_deployed_passed_and_is_the_cheapest_that_did(
    comparison: SearchComparison, deployments: list[Deployment]
) -> None:
    certify = held_out()
    records = deployed_records(deployments, comparison.archive, certify, held_out(500), PROFILE)
    assert as_json(records) == records
    assert list(records) == ["0.5", "1", "2", "4"]
    sequences = sequence_records(deployments)
    assert as_json(sequences) == sequences
    for key, record in records.items():
        passed = [entry for entry in sequences[key] if entry["verdict"] == "pass"]
        assert (record is None) == (not passed)
        if record is not None:
            assert record["verdict"] == "pass"
            assert record["energy_j"] == min(entry["energy_j"] for entry in passed)
            assert record["plan_id"] in {entry["plan_id"] for entry in passed}
            assert record["method"] in {"uniform", "greedy", "ilp", "random", "ppo"}
            assert record["certify_drop_pp"] < float(key)
    assert records["4"] is not None
    assert records["4"]["saving"] > 0.1


def test_where_nothing_passed_there_is_null_and_nothing_to_bundle(comparison: SearchComparison) -> None:
    hopeless = StubModel(PROFILE, lambda plan: 0 if plan == PROFILE.reference_plan else 900).held_out(1000)
    deployments = [certify_tolerance(comparison.archive, hopeless, PROFILE, Guardrail(1.0))]
    assert deployed_records(deployments, comparison.archive, hopeless, hopeless, PROFILE) == {"1": None}
    assert bundled_plans(deployments, comparison.archive, hopeless, PROFILE) == ()


def test_a_bundle_carries_the_certified_plans_from_the_strictest_tolerance_on(
    comparison: SearchComparison, deployments: list[Deployment]
) -> None:
    certify = held_out()
    plans = bundled_plans(deployments[::-1], comparison.archive, certify, PROFILE)
    assert [plan.tolerance_pp for plan in plans] == [d.tolerance_pp for d in deployments if d.deployed]
    for plan in plans:
        assert plan.verdict == "pass"
        assert plan.drop_pp == certify.counts(plan.plan).drop_pp
        assert plan.saving == PROFILE.saving(plan.energy_j)


def test_the_archive_and_the_profile_are_json(comparison: SearchComparison) -> None:
    records = archive_records(comparison.archive)
    assert as_json(records) == records
    assert len(records) == len(comparison.archive)
    layers = as_json(profile_record(PROFILE))["layers"]
    assert [layer["shape"]["name"] for layer in layers] == list(PROFILE.layer_names)
    assert set(layers[1]["costs"]) == {"fp32", "int8", "int4", "int2"}
    assert archive_records(Archive(comparison.reference, SearchGate())) == []
