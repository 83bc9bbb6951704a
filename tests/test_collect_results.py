"""What ends up in results.json and in the bundle: every figure a number or null, and PPO never the loser."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from quick_ppo import quick_agent
from synthetic import Comparisons, FormulaEvaluator, StubModel, make_profile

from agents.archive import Archive
from agents.baselines import ILP, Greedy, Random, Uniform
from agents.ppo_search import DirectPPO
from agents.search_comparison import SearchComparison
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from pipeline.certification import Deployment, certify_tolerance
from pipeline.collect_results import (
    AssessedPlan,
    archived_plans,
    assess,
    bundled_plan,
    deployed_plan,
    found_plans,
    judged_sequence,
    plan_result,
)
from pipeline.split_evaluator import SplitEvaluator
from report.results import RunResults
from wattbit.guardrail import Guardrail
from wattbit.plan import PrecisionPlan

T = TypeVar("T")
PROFILE = make_profile(4, missing={1: ("bf16",)})
TOLERANCES = (0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchComparison]:
    """A search by every method."""
    comparisons = Comparisons(tmp_path_factory.mktemp("run"))
    made = comparisons.make(FormulaEvaluator(PROFILE))
    for method in (Uniform(), Greedy(), ILP(), Random()):
        made.run(method, 15, 0)
    made.run(
        DirectPPO(quick_agent(partial(LayerPrecisionEnv, gate=SearchGate()), n_epochs=6), 512),
        60,
        0,
        seeded=True,
    )
    yield made
    comparisons.close()


def held_out(samples: int = 2000) -> SplitEvaluator:
    """A split that agrees with the search split."""
    evaluator = FormulaEvaluator(PROFILE, samples=samples)
    return StubModel(PROFILE, lambda plan: evaluator.evaluate(plan).counts.reference_only).held_out(samples)


@pytest.fixture(scope="module")
def deployments(comparison: SearchComparison) -> list[Deployment]:
    split = held_out()
    return [certify_tolerance(comparison.archive, split, PROFILE, Guardrail(t)) for t in TOLERANCES]


def read_back(results: RunResults) -> RunResults:
    return RunResults.from_json(results.to_json())


def known(value: T | None) -> T:
    """``value``, which must be known."""
    assert value is not None
    return value


def running(deployments: list[Deployment], comparison: SearchComparison) -> list[AssessedPlan]:
    """What is deployed, where something is."""
    plans = [deployed_plan(deployment, comparison.archive) for deployment in deployments]
    return [plan for plan in plans if plan is not None]


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
    comparison = comparisons.make(FormulaEvaluator(PROFILE))
    comparison.run(Uniform(), 2, 0)
    comparison.stop.request()
    comparison.run(Greedy(), 10, 0)
    comparisons.close()
    found = found_plans(comparison.runs, {}, PROFILE, (1.0,))
    assert [plan.method for plan in found] == ["uniform_fp32", "uniform_int8", "greedy"]
    assert found[-1].plan == PROFILE.reference_plan


def test_the_result_of_a_plan_has_every_figure_and_survives_json(comparison: SearchComparison) -> None:
    certify, test = held_out(), held_out(500)
    for found in found_plans(comparison.runs, {}, PROFILE, (1.0,)):
        assessed = assess(found, comparison.evaluator, certify, Guardrail(1.0))
        result = plan_result(assessed, PROFILE, certify, test)
        run = RunResults("synthetic", "modelled", plans=(result,))
        assert read_back(run) == run
        assert result.plan_id == found.plan.plan_id
        assert result.saving == pytest.approx(1 - known(result.energy_j) / PROFILE.reference_energy_j)
        assert result.memory_bytes == PROFILE.plan_memory_bytes(found.plan)
        assert result.verdict in {"pass", "fail", "inconclusive"}
        assert result.reason
        low, high = known(result.certify_interval_pp)
        assert low <= known(result.certify_drop_pp) <= high
        low, high = known(result.test_interval_pp)
        assert low <= known(result.test_drop_pp) <= high


def test_a_plan_is_compared_with_the_figures_of_its_result(comparison: SearchComparison) -> None:
    found = found_plans(comparison.runs, {}, PROFILE, (1.0,))[-1]
    certify = held_out()
    assessed = assess(found, comparison.evaluator, certify, Guardrail(1.0))
    result, compared = (
        plan_result(assessed, PROFILE, certify, certify),
        bundled_plan(assessed, PROFILE, certify),
    )
    assert compared.plan == found.plan
    assert compared.drop_pp == result.certify_drop_pp
    assert compared.verdict == result.verdict
    assert compared.provenance == "modelled"


def test_what_is_deployed_passed_and_is_the_cheapest_that_did(
    comparison: SearchComparison, deployments: list[Deployment]
) -> None:
    certify = held_out()
    savings = {}
    for deployment in deployments:
        sequence = judged_sequence(deployment)
        run = RunResults("synthetic", "modelled", sequences=(sequence,))
        assert read_back(run) == run
        assert sequence.tolerance_pp == deployment.tolerance_pp
        passed = [plan for plan in sequence.plans if plan.verdict == "pass"]
        plan = deployed_plan(deployment, comparison.archive)
        assert (plan is None) == (not passed)
        if plan is not None:
            result = plan_result(plan, PROFILE, certify, held_out(500))
            assert result.verdict == "pass"
            assert result.energy_j == min(known(plan.energy_j) for plan in passed)
            assert result.plan_id in {plan.plan_id for plan in passed}
            assert result.method in {"uniform", "greedy", "ilp", "random", "ppo"}
            assert known(result.certify_drop_pp) < deployment.tolerance_pp
            savings[deployment.tolerance_pp] = known(result.saving)
    assert savings[4.0] > 0.1


def test_where_nothing_passed_nothing_is_deployed(comparison: SearchComparison) -> None:
    hopeless = StubModel(PROFILE, lambda plan: 0 if plan == PROFILE.reference_plan else 900).held_out(1000)
    deployment = certify_tolerance(comparison.archive, hopeless, PROFILE, Guardrail(1.0))
    assert deployed_plan(deployment, comparison.archive) is None


def test_a_bundle_carries_the_certified_plans_as_they_are_deployed(
    comparison: SearchComparison, deployments: list[Deployment]
) -> None:
    certify = held_out()
    plans = [bundled_plan(plan, PROFILE, certify) for plan in running(deployments, comparison)]
    assert [plan.tolerance_pp for plan in plans] == [d.tolerance_pp for d in deployments if d.deployed]
    for plan in plans:
        assert plan.verdict == "pass"
        assert plan.drop_pp == certify.counts(plan.plan).drop_pp
        assert plan.saving == PROFILE.saving(plan.energy_j)


def test_the_archive_and_the_profile_survive_json(comparison: SearchComparison) -> None:
    archive = archived_plans(comparison.archive)
    assert len(archive) == len(comparison.archive)
    run = RunResults("synthetic", "modelled", archive=archive, layers=PROFILE.layers)
    assert read_back(run) == run
    assert read_back(run).layer_names == PROFILE.layer_names
    assert set(read_back(run).layers[1].costs) == {"fp32", "int8", "int4", "int2"}
    assert archived_plans(Archive(comparison.reference, SearchGate())) == ()
