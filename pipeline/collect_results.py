"""The parts of a run's results, each from what the search and the tests gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.archive import Archive
from agents.baselines import uniform_plans
from agents.search_comparison import MethodRun
from agents.training_callbacks import LearningPoint
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.certification import Deployment, judge_plan
from pipeline.split_evaluator import SplitEvaluator
from report.plan_result import ArchivedPlan, JudgedPlan, PlanResult, PlanSequence
from report.results import BestSaving, CurvePoint, ReferenceResult
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import Judgement
from wattbit.judging.noninferiority import interval_pp
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.serving.bundle import BundledPlan


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


@dataclass(frozen=True, slots=True)
class AssessedPlan:
    """A plan found, its outcome on ``search`` and its judgement on ``certify``."""

    found: FoundPlan
    outcome: Outcome
    judgement: Judgement


def assess(
    found: FoundPlan, evaluator: Evaluator, certify: SplitEvaluator, guardrail: Guardrail
) -> AssessedPlan:
    """Judge ``found`` by itself, for a comparison."""
    outcome = evaluator.evaluate(found.plan)
    return AssessedPlan(found, outcome, judge_plan(found.plan, certify, evaluator.profile, guardrail))


def deployed_plan(deployment: Deployment, archive: Archive) -> AssessedPlan | None:
    """The certified plan of a tolerance under the name of the method that evaluated it first."""
    for outcome, judgement in deployment.sequence:
        if outcome is deployment.deployed:
            method = archive.method(outcome.plan)
            found = FoundPlan(method, deployment.tolerance_pp, outcome.plan, None, None)
            return AssessedPlan(found, outcome, judgement)
    return None


def plan_result(
    assessed: AssessedPlan, profile: ModelProfile, certify: SplitEvaluator, test: SplitEvaluator
) -> PlanResult:
    """A plan as results carry it."""
    found, outcome, judgement = assessed.found, assessed.outcome, assessed.judgement
    certified, tested = certify.counts(found.plan), test.counts(found.plan)
    return PlanResult(
        method=found.method,
        tolerance_pp=found.tolerance_pp,
        plan_id=found.plan.plan_id,
        precisions=dict(found.plan),
        energy_j=outcome.energy_j,
        saving=profile.saving(outcome.energy_j),
        latency_ms=outcome.latency_ms,
        memory_bytes=profile.plan_memory_bytes(found.plan),
        search_drop_pp=outcome.drop_pp,
        evaluations=found.evaluations,
        seconds=found.seconds,
        verdict=judgement.verdict,
        reason="; ".join(judgement.reasons),
        certify_drop_pp=certified.drop_pp,
        certify_interval_pp=interval_pp(certified),
        test_drop_pp=tested.drop_pp,
        test_interval_pp=interval_pp(tested),
    )


def bundled_plan(assessed: AssessedPlan, profile: ModelProfile, certify: SplitEvaluator) -> BundledPlan:
    """A plan as a bundle carries it."""
    found, outcome = assessed.found, assessed.outcome
    return BundledPlan(
        plan=found.plan,
        tolerance_pp=found.tolerance_pp,
        method=found.method,
        energy_j=outcome.energy_j,
        saving=profile.saving(outcome.energy_j),
        latency_ms=outcome.latency_ms,
        drop_pp=certify.counts(found.plan).drop_pp,
        verdict=assessed.judgement.verdict,
        provenance=profile.provenance,
        disagreements=certify.disagreements(found.plan),
    )


def judged_sequence(deployment: Deployment) -> PlanSequence:
    """What the fixed sequence of a tolerance gave, in the order tested."""
    plans = tuple(
        JudgedPlan(
            plan_id=outcome.plan.plan_id,
            energy_j=outcome.energy_j,
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            drop_pp=judgement.drop_pp,
            upper_pp=judgement.upper_pp,
            needed_samples=judgement.needed_samples,
        )
        for outcome, judgement in deployment.sequence
    )
    return PlanSequence(deployment.tolerance_pp, plans)


def archived_plans(archive: Archive) -> tuple[ArchivedPlan, ...]:
    """Every plan evaluated, in the order evaluated."""
    return tuple(ArchivedPlan(archive.method(o.plan), o.energy_j, o.drop_pp) for o in archive)


def curve_point(point: LearningPoint) -> CurvePoint:
    """A point of the learning curve."""
    saving = tuple(BestSaving(tolerance_pp, share) for tolerance_pp, share in point.best_saving.items())
    return CurvePoint(point.timesteps, point.mean_reward, point.entropy, point.evaluations, saving)


def reference_result(
    evaluator: PlanEvaluator, certify: SplitEvaluator, test: SplitEvaluator
) -> ReferenceResult:
    """The unmodified model on every split."""
    profile = evaluator.profile
    return ReferenceResult(
        accuracy=evaluator.reference_accuracy,
        certify_accuracy=certify.reference_accuracy,
        test_accuracy=test.reference_accuracy,
        energy_j=profile.reference_energy_j,
        latency_ms=profile.plan_latency_ms(profile.reference_plan),
    )
