"""From a finished search to results and a bundle: certify, compare on held-out data, collect."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents.export import export_policy
from agents.ppo import PPO
from agents.search_comparison import SearchComparison
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.certification import Deployment, SplitEvaluator, certify_tolerance
from pipeline.collect_results import (
    RESULTS_SCHEMA,
    archive_records,
    bundled_plans,
    compared_plan,
    deployed_records,
    found_plans,
    plan_record,
    profile_record,
    sequence_records,
)
from pipeline.progress import Update
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
    """What a run came to: the content of ``results.json`` (timings are added later), and the bundle."""

    results: dict[str, Any]
    bundle: ControllerBundle


def judge_search(
    workload: Workload,
    model: SwitchableModel,
    evaluator: PlanEvaluator,
    comparison: SearchComparison,
    agent: PPO,
    guardrail: Guardrail,
    about: Mapping[str, Any],
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
        about: Further entries of ``results.json``: seed, status, notes, ...
        origin: How to make the workload again; kept in the bundle.
        update: Progress.
    """
    archive, profile, tolerances = comparison.archive, evaluator.profile, comparison.tolerances_pp
    policy = None if agent.model is None else export_policy(agent.model, profile.precisions, agent.pp_per_nat)
    guardrails = {tolerance: replace(guardrail, tolerance_pp=tolerance) for tolerance in tolerances}
    certify, test = (SplitEvaluator(model, *split_batches(workload, name)) for name in ("certify", "test"))
    deployments = [certify_tolerance(archive, certify, profile, guardrails[t]) for t in tolerances]
    found = found_plans(comparison.runs, _proposals(policy, profile, tolerances), profile, tolerances)
    records = []
    for done, item in enumerate(found, 1):
        records.append(plan_record(item, evaluator, certify, test, guardrails[item.tolerance_pp]))
        update(done, len(found), item.method)
    fingerprint = model_fingerprint(workload.model)
    results = {
        "schema": RESULTS_SCHEMA,
        "workload": workload.name,
        "description": workload.description,
        "command": f"python {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        **about,
        "model": {
            "fingerprint": fingerprint,
            "parameters": sum(p.numel() for p in workload.model.parameters()),
            "switchable_layers": len(profile.layers),
        },
        "device": profile.device,
        "provenance": profile.provenance,
        "reference": _reference(evaluator, certify, test),
        "precisions": list(profile.precisions),
        "tolerances_pp": list(tolerances),
        "guardrail": guardrail.as_dict(),
        "splits": {name: len(split) for name, split in workload.splits.items()},
        "plans": records,
        "deployed": deployed_records(deployments, archive, certify, test, profile),
        "sequences": sequence_records(deployments),
        "profile": profile_record(profile),
        "archive": archive_records(archive),
        "learning_curve": [asdict(point) for point in agent.learning_curve],
    }
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    bundle = ControllerBundle(
        plans=bundled_plans(deployments, archive, certify, profile),
        compared=tuple(compared_plan(record, profile) for record in records),
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


def _reference(evaluator: PlanEvaluator, certify: SplitEvaluator, test: SplitEvaluator) -> dict[str, float]:
    profile = evaluator.profile
    return {
        "accuracy": evaluator.reference_accuracy,
        "certify_accuracy": certify.reference_accuracy,
        "test_accuracy": test.reference_accuracy,
        "energy_j": profile.reference_energy_j,
        "latency_ms": profile.plan_latency_ms(profile.reference_plan),
    }


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
