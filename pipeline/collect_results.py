"""What a run came to, as the dict that ``results.json`` holds: every table and plot is drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents.archive import Archive
from agents.baselines import uniform_plans
from agents.search_comparison import MethodRun
from envs.evaluators.evaluator import Evaluator
from pipeline.certification import Deployment, SplitEvaluator, interval_pp, judge_plan
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import Judgement
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.serving.bundle import BundledPlan

RESULTS_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class FoundPlan:
    """The plan a method offers at a tolerance, and what it cost to find (None if that is not known)."""

    method: str
    tolerance_pp: float
    plan: PrecisionPlan
    evaluations: int | None
    seconds: float | None


def found_plans(
    runs: Sequence[MethodRun],
    policy_plans: Mapping[float, PrecisionPlan],
    profile: ModelProfile,
    tolerances_pp: Sequence[float],
) -> list[FoundPlan]:
    """Every method's plan for every tolerance, uniform plans one by one, the learned policy last."""
    found: list[FoundPlan] = []
    for tolerance_pp in tolerances_pp:
        for run in runs:
            if run.name == "uniform":
                share = run.seconds / max(1, run.evaluations)
                found += [
                    FoundPlan(f"uniform_{name}", tolerance_pp, plan, 1, share)
                    for name, plan in uniform_plans(profile).items()
                    if plan in run.archive
                ]
            else:
                plan = run.archive.best(tolerance_pp).plan
                found.append(FoundPlan(run.name, tolerance_pp, plan, run.evaluations, run.seconds))
        if tolerance_pp in policy_plans:
            learned = next(run for run in runs if run.name == "ppo")
            found.append(
                FoundPlan(
                    "policy", tolerance_pp, policy_plans[tolerance_pp], learned.evaluations, learned.seconds
                )
            )
    return found


def plan_record(
    found: FoundPlan,
    evaluator: Evaluator,
    certify: SplitEvaluator | None,
    test: SplitEvaluator | None,
    guardrail: Guardrail,
) -> dict[str, Any]:
    """One entry of ``plans``; the fields of a split that was not looked at are null."""
    outcome = evaluator.evaluate(found.plan)
    profile = evaluator.profile
    record: dict[str, Any] = {
        "method": found.method,
        "tolerance_pp": found.tolerance_pp,
        "plan_id": found.plan.plan_id,
        "precisions": dict(found.plan),
        "energy_j": outcome.energy_j,
        "saving": profile.saving(outcome.energy_j),
        "latency_ms": outcome.latency_ms,
        "memory_bytes": profile.plan_memory_bytes(found.plan),
        "search_drop_pp": outcome.drop_pp,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
    }
    judgement = None if certify is None else judge_plan(found.plan, certify, profile, guardrail)
    record |= {
        "verdict": judgement and judgement.verdict,
        "reason": "; ".join(judgement.reasons) if judgement else "",
    }
    return record | split_record("certify", certify, found.plan) | split_record("test", test, found.plan)


def split_record(name: str, split: SplitEvaluator | None, plan: PrecisionPlan) -> dict[str, Any]:
    """Drop and 95 % interval of ``plan`` on one split, percentage points; null where it was not looked at."""
    if split is None:
        return {f"{name}_drop_pp": None, f"{name}_interval_pp": None}
    counts = split.counts(plan)
    return {f"{name}_drop_pp": counts.drop_pp, f"{name}_interval_pp": list(interval_pp(counts))}


def deployed_records(
    deployments: Sequence[Deployment],
    archive: Archive,
    certify: SplitEvaluator,
    test: SplitEvaluator,
    profile: ModelProfile,
) -> dict[str, dict[str, Any] | None]:
    """The certified plan of each tolerance, keyed by tolerance; null where the reference runs."""
    records: dict[str, dict[str, Any] | None] = {}
    for deployment in deployments:
        outcome = deployment.deployed
        records[f"{deployment.tolerance_pp:g}"] = (
            None
            if outcome is None
            else {
                "plan_id": outcome.plan.plan_id,
                "method": archive.method(outcome.plan),
                "precisions": dict(outcome.plan),
                "energy_j": outcome.energy_j,
                "saving": profile.saving(outcome.energy_j),
                "latency_ms": outcome.latency_ms,
                "memory_bytes": profile.plan_memory_bytes(outcome.plan),
                "search_drop_pp": outcome.drop_pp,
                "verdict": "pass",
                **split_record("certify", certify, outcome.plan),
                **split_record("test", test, outcome.plan),
            }
        )
    return records


def sequence_records(deployments: Sequence[Deployment]) -> dict[str, list[dict[str, Any]]]:
    """What the fixed sequence of each tolerance gave, in the order tested, keyed by tolerance."""
    return {
        f"{deployment.tolerance_pp:g}": [
            {"plan_id": outcome.plan.plan_id, "energy_j": outcome.energy_j, **_judgement_record(judgement)}
            for outcome, judgement in deployment.sequence
        ]
        for deployment in deployments
    }


def archive_records(archive: Archive) -> list[dict[str, Any]]:
    """Energy, drop on ``search`` and method of every plan evaluated."""
    return [
        {
            "energy_j": outcome.energy_j,
            "search_drop_pp": outcome.drop_pp,
            "method": archive.method(outcome.plan),
        }
        for outcome in archive
    ]


def profile_record(profile: ModelProfile) -> dict[str, Any]:
    """The part of the profile that figures are drawn from."""
    return {"layers": [asdict(layer) for layer in profile.layers]}


def bundled_plans(
    deployments: Sequence[Deployment], archive: Archive, certify: SplitEvaluator, profile: ModelProfile
) -> tuple[BundledPlan, ...]:
    """The certified plans as a bundle carries them, the strictest tolerance first."""
    return tuple(
        BundledPlan(
            plan=outcome.plan,
            tolerance_pp=deployment.tolerance_pp,
            method=archive.method(outcome.plan),
            energy_j=outcome.energy_j,
            saving=profile.saving(outcome.energy_j),
            latency_ms=outcome.latency_ms,
            drop_pp=certify.counts(outcome.plan).drop_pp,
            verdict="pass",
            provenance=profile.provenance,
        )
        for deployment in sorted(deployments, key=lambda d: d.tolerance_pp)
        if (outcome := deployment.deployed) is not None
    )


def compared_plan(record: Mapping[str, Any], profile: ModelProfile) -> BundledPlan:
    """An entry of ``plans`` as a bundle carries it, for later comparison."""
    return BundledPlan(
        plan=PrecisionPlan(record["precisions"]),
        tolerance_pp=record["tolerance_pp"],
        method=record["method"],
        energy_j=record["energy_j"],
        saving=record["saving"],
        latency_ms=record["latency_ms"],
        drop_pp=record["certify_drop_pp"],
        verdict=record["verdict"],
        provenance=profile.provenance,
    )


def _judgement_record(judgement: Judgement) -> dict[str, Any]:
    return {
        "verdict": judgement.verdict,
        "reasons": list(judgement.reasons),
        "drop_pp": judgement.drop_pp,
        "upper_pp": judgement.upper_pp,
        "needed_samples": judgement.needed_samples,
    }
