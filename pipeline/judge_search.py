"""From a finished search to results and a bundle: certify, compare on held-out data, collect."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents.export import export_policy
from agents.ppo import PPOAgent
from agents.search_comparison import SearchComparison
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.certification import Deployment, certify_tolerance
from pipeline.collect_results import (
    archived_plans,
    assess,
    bundled_plan,
    curve_point,
    deployed_plan,
    found_plans,
    judged_sequence,
    plan_result,
    reference_result,
)
from pipeline.progress import Update
from pipeline.split_evaluator import SplitEvaluator
from report.plan_result import DeployedPlan
from report.results import ModelFacts, RunResults
from wattbit.calibration import calibration_to_json
from wattbit.execution.switchable import SwitchableModel
from wattbit.features import Context, FeatureEncoder
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import Certificate
from wattbit.plan import PrecisionPlan
from wattbit.policy import MLPPolicy
from wattbit.profile import ModelProfile
from wattbit.serving.bundle import ControllerBundle
from wattbit.storage.fingerprint import model_fingerprint
from workloads.padding import split_batches
from workloads.workload import Split, Workload


@dataclass(frozen=True, slots=True)
class Judged:
    """What a search came to. Of the results, what only the run knows is missing: seed, status, times."""

    results: RunResults
    bundle: ControllerBundle


def judge_search(
    workload: Workload,
    model: SwitchableModel,
    evaluator: PlanEvaluator,
    comparison: SearchComparison,
    agent: PPOAgent,
    guardrail: Guardrail,
    origin: Mapping[str, Any],
    update: Update,
) -> Judged:
    """Certify a plan for every tolerance, judge every method's plans, and collect the results.

    Args:
        workload: The workload.
        model: Its switchable model, calibrated.
        evaluator: The evaluator that the search used.
        comparison: The search.
        agent: The agent, trained or not.
        guardrail: The limits; its tolerance is replaced by each of the search's.
        origin: How to make the workload again; kept in the bundle.
        update: Progress.
    """
    archive, profile, tolerances = comparison.archive, evaluator.profile, comparison.tolerances_pp
    policy = None if agent.model is None else export_policy(agent.model, profile.precisions, agent.pp_per_nat)
    guardrails = {tolerance: replace(guardrail, tolerance_pp=tolerance) for tolerance in tolerances}
    certify, test = (SplitEvaluator(model, *split_batches(workload, name)) for name in ("certify", "test"))
    deployments = [certify_tolerance(archive, certify, profile, guardrails[t]) for t in tolerances]
    found = found_plans(comparison.runs, _proposals(policy, profile, tolerances), profile, tolerances)
    compared, plans = [], []
    for done, item in enumerate(found, 1):
        assessed = assess(item, evaluator, certify, guardrails[item.tolerance_pp])
        compared.append(bundled_plan(assessed, profile, certify))
        plans.append(plan_result(assessed, profile, certify, test))
        update(done, len(found), item.method)
    deployed = {deployment.tolerance_pp: deployed_plan(deployment, archive) for deployment in deployments}
    running = [plan for _, plan in sorted(deployed.items()) if plan is not None]
    fingerprint = model_fingerprint(workload.model)
    results = RunResults(
        workload=workload.name,
        description=workload.description,
        command=f"python {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        model=ModelFacts(
            fingerprint, sum(p.numel() for p in workload.model.parameters()), len(profile.layers)
        ),
        device=profile.device,
        provenance=profile.provenance,
        reference=reference_result(evaluator, certify, test),
        precisions=profile.precisions,
        tolerances_pp=tolerances,
        guardrail=guardrail,
        splits={name: len(split) for name, split in workload.splits.items()},
        plans=tuple(plans),
        deployed=tuple(
            DeployedPlan(t, None if plan is None else plan_result(plan, profile, certify, test))
            for t, plan in deployed.items()
        ),
        sequences=tuple(map(judged_sequence, deployments)),
        layers=profile.layers,
        coverage=profile.coverage,
        archive=archived_plans(archive),
        learning_curve=tuple(map(curve_point, agent.learning_curve)),
    )
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    bundle = ControllerBundle(
        plans=tuple(bundled_plan(plan, profile, certify) for plan in running),
        compared=tuple(compared),
        profile=profile,
        calibration_json=calibration_to_json(model.calibration),
        certificates=_certificates(deployments, workload.splits["certify"], guardrails, fingerprint, created),
        policy=policy,
        model_fingerprint=fingerprint,
        workload=origin,
        versions={"python": platform.python_version()}
        | {p: version(p) for p in ("wattbit", "torch", "numpy")},
        created=created,
    )
    return Judged(results, bundle)


def _proposals(
    policy: MLPPolicy | None, profile: ModelProfile, tolerances: Sequence[float]
) -> dict[float, PrecisionPlan]:
    """What the learned policy alone would do at each tolerance."""
    if policy is None:
        return {}
    encoder = FeatureEncoder(profile, policy.pp_per_nat)
    return {tolerance: policy.propose(encoder, Context(tolerance)) for tolerance in tolerances}


def _certificates(
    deployments: Sequence[Deployment],
    split: Split,
    guardrails: Mapping[float, Guardrail],
    fingerprint: str,
    created: str,
) -> tuple[Certificate, ...]:
    return tuple(
        Certificate(
            guardrail=guardrails[deployment.tolerance_pp],
            judgements={outcome.plan.plan_id: judgement for outcome, judgement in deployment.sequence},
            model_fingerprint=fingerprint,
            data_fingerprint=split.fingerprint(),
            samples=len(split),
            created=created,
        )
        for deployment in deployments
    )
