"""The job of evaluate.py: every plan asked about, and every baseline, on ``certify`` and ``test``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from agents.baselines import uniform_plans
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.certification import judge_plan
from pipeline.collect_results import FoundPlan, assess, plan_result, reference_result
from pipeline.energy_source import EnergySource
from pipeline.evaluation_settings import EvaluationSettings
from pipeline.judged_plans import NOT_COUNTED, JudgedPlans
from pipeline.preparation import build_model, build_workload, profile_model, use_threads
from pipeline.progress import Stages, make_console
from pipeline.reference_check import check_reference, require_same_reference
from pipeline.split_evaluator import SplitEvaluator
from report.plan_result import PlanResult
from report.results import ReferenceResult, RunResults
from report.tables import final_table
from wattbit.calibration import calibration_from_json
from wattbit.errors import BundleError, ConfigError
from wattbit.execution.switchable import SwitchableModel
from wattbit.guardrail import Guardrail
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS
from wattbit.profile import ModelProfile
from wattbit.profiling.count_macs import coverage_of
from wattbit.serving.bundle import ControllerBundle
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.fingerprint import model_fingerprint
from workloads.padding import split_batches
from workloads.workload import Workload

BUNDLED, GIVEN = "bundle", "plan"
NOT_PASSED = 1
"""Exit code if a plan that was asked about does not pass its guardrail."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: a workload, its profile, the plans asked about and those they are compared with."""

    workload: Workload
    model: SwitchableModel
    profile: ModelProfile
    bundle: ControllerBundle | None
    energy_note: str


def evaluate(settings: EvaluationSettings) -> None:
    """Judge what the settings name, print the table, and exit with 1 if a plan asked about does not pass."""
    use_threads(settings.threads)
    console = make_console()
    stages = Stages(console)
    with stages.stage("model", "load model and data"):
        workload = build_workload(settings.workload)
        check = check_reference(workload)
        subject = _subject(settings, workload)
        coverage = coverage_of(subject.model, check.macs)
        subject = replace(subject, profile=replace(subject.profile, coverage=coverage))
    with subject.model as model:
        require_same_reference(model, subject.workload, check)
        held = {name: split_batches(subject.workload, name) for name in ("search", "certify", "test")}
        evaluator = PlanEvaluator(model, subject.profile, *held["search"])
        guardrail = settings.guardrail.resolve(evaluator.reference_accuracy)
        found = _plans(settings.plan, subject, guardrail)
        certify, test = (SplitEvaluator(model, *held[name]) for name in ("certify", "test"))
        judged = _judged_plans(settings, subject)
        plans = []
        with stages.stage("evaluate", "evaluate plans") as update:
            for done, item in enumerate(found, 1):
                limits = replace(guardrail, tolerance_pp=item.tolerance_pp)
                assessed = assess(item, evaluator, certify, limits)
                if item.method == GIVEN and judged is not None:
                    judgement = judged.correct(
                        item.plan.plan_id,
                        assessed.judgement,
                        limits,
                        partial(judge_plan, item.plan, certify, subject.profile),
                    )
                    assessed = replace(assessed, judgement=judgement)
                result = plan_result(assessed, subject.profile, certify, test)
                plans.append(as_bundled(result, subject.bundle))
                update(done, len(found), item.method)
        reference = reference_result(evaluator, certify, test)
        results = _results(settings.seed, subject, guardrail, reference, plans)
        results = replace(results, warnings=check.warnings)
    for line in (
        check.text,
        f"Coverage: {coverage.text}.",
        *(f"WARNING: {warning}." for warning in check.warnings),
        subject.energy_note,
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(final_table(results))
    asked = [plan for plan in plans if plan.method in (BUNDLED, GIVEN)]
    _tell(console, asked)
    if judged is None:
        console.print(NOT_COUNTED, highlight=False, soft_wrap=True, markup=False)
    if settings.json is not None:
        write_atomically(settings.json, results.to_json(), "choose another file with json=FILE")
    if any(plan.verdict != "pass" for plan in asked):
        sys.exit(NOT_PASSED)


def _subject(settings: EvaluationSettings, workload: Workload) -> Subject:
    bundle = settings.source
    if isinstance(bundle, EnergySource):
        return _profiled(workload, bundle)
    found = model_fingerprint(workload.model)
    if found != bundle.model_fingerprint:
        raise BundleError(
            f"{settings.bundle_folder} is for model {bundle.model_fingerprint[:12]}…, workload "
            f"{workload.name} has {found[:12]}…; give the workload and the seed it was trained with"
        )
    model = build_model(workload, bundle.profile.precisions)
    if model.layer_names != bundle.profile.layer_names:
        raise BundleError(
            f"{settings.bundle_folder} is for a model with other layers than workload {workload.name}"
        )
    model.load_calibration(calibration_from_json(bundle.calibration_json))
    note = f"Energy is {bundle.profile.provenance} for {bundle.profile.device}, as in the bundle."
    return Subject(workload, model, bundle.profile, bundle, note)


def _judged_plans(settings: EvaluationSettings, subject: Subject) -> JudgedPlans | None:
    """The plans judged so far on the split that the bundle was certified on; None without a bundle."""
    if settings.bundle_folder is None:
        return None
    split = subject.workload.splits["certify"].fingerprint()
    return JudgedPlans.read(Path(settings.bundle_folder) / "judged.json", split)


def _profiled(workload: Workload, energy: EnergySource) -> Subject:
    model = build_model(workload, list(PRECISIONS))
    profile, _ = profile_model(model, workload, energy.costs)
    return Subject(workload, model, profile, None, energy.note)


def _plans(asked: str | None, subject: Subject, guardrail: Guardrail) -> list[FoundPlan]:
    """The plans asked about first, then the baselines, at every tolerance there is a plan for."""
    profile, bundle = subject.profile, subject.bundle
    found: list[FoundPlan] = []
    if bundle is not None:
        found += [FoundPlan(BUNDLED, plan.tolerance_pp, plan.plan, None, None) for plan in bundle.plans]
    tolerances = {plan.tolerance_pp for plan in bundle.compared} if bundle else {guardrail.tolerance_pp}
    if asked is not None:
        plan = profile.require_plan(read_plan(asked, profile.layer_names))
        found.append(FoundPlan(GIVEN, guardrail.tolerance_pp, plan, None, None))
    for tolerance in sorted({*tolerances, *(item.tolerance_pp for item in found)}):
        uniform = uniform_plans(profile)
        found += [FoundPlan(f"uniform_{name}", tolerance, plan, None, None) for name, plan in uniform.items()]
    others = [] if bundle is None else [p for p in bundle.compared if not p.method.startswith("uniform_")]
    found += [FoundPlan(p.method, p.tolerance_pp, p.plan, None, None) for p in others]
    return found


def as_bundled(result: PlanResult, bundle: ControllerBundle | None) -> PlanResult:
    """``result`` with the energy that the bundle gives the plan, which may have been found end to end."""
    plans = {} if bundle is None else {plan.plan.plan_id: plan for plan in bundle.plans}
    known = plans.get(result.plan_id)
    return result if known is None else replace(result, energy_j=known.energy_j, saving=known.saving)


def read_plan(text: str, layers: Sequence[str]) -> PrecisionPlan:
    """A plan from a file's path, or the uniform plan of a precision's name."""
    if text in PRECISIONS:
        return PrecisionPlan.uniform(layers, text)
    if not text.endswith(".json") and not Path(text).exists():
        raise ConfigError(
            f"plan={text}: no such file, and no precision has that name; give a JSON file or one of "
            f"{', '.join(PRECISIONS)}"
        )
    return PrecisionPlan.read(Path(text), layers)


def _results(
    seed: int,
    subject: Subject,
    guardrail: Guardrail,
    reference: ReferenceResult,
    plans: Sequence[PlanResult],
) -> RunResults:
    return RunResults(
        workload=subject.workload.name,
        provenance=subject.profile.provenance,
        seed=seed,
        status="finished",
        energy_note=subject.energy_note,
        device=subject.profile.device,
        reference=reference,
        precisions=subject.profile.precisions,
        tolerances_pp=tuple(sorted({plan.tolerance_pp for plan in plans if plan.tolerance_pp is not None})),
        guardrail=guardrail,
        coverage=subject.profile.coverage,
        splits={name: len(split) for name, split in subject.workload.splits.items()},
        plans=tuple(plans),
    )


def _tell(console: Console, asked: Sequence[PlanResult]) -> None:
    for plan in asked:
        console.print(
            f"{plan.method} at {plan.tolerance_pp:g} pp: {plan.verdict}: {plan.reason}",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
