"""The job of train.py, stage by stage."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console

from agents.archive import Journal
from agents.baselines import ILP, Greedy, Random, Uniform
from agents.ppo import PPOAgent
from agents.ppo_search import PPOSearch
from agents.search_comparison import SearchComparison
from agents.search_method import SearchMethod
from agents.stopping import StopRule
from envs.evaluators.evaluator import Outcome
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.confirmation import certificate_record, confirmed
from pipeline.evaluator_factory import build_evaluator, workers_ended
from pipeline.judge_search import Judged, judge_search
from pipeline.preparation import build_model, build_workload, profile_model, use_threads
from pipeline.progress import Stages
from pipeline.reference_check import check_reference, require_same_reference
from pipeline.run_folder import RunFolder
from pipeline.signals import stop_on_signals
from pipeline.training_settings import TrainingSettings
from report.html_report import write_report
from report.tables import full_screen, last_screen
from wattbit.audit.log import AuditLog
from wattbit.calibration import calibration_from_json, calibration_to_json
from wattbit.coverage import Coverage
from wattbit.execution.switchable import SwitchableModel
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import feasible_before_search
from wattbit.model_inputs import call_model, predict, select
from wattbit.profile import ModelProfile
from wattbit.profiling.count_macs import coverage_of
from wattbit.profiling.profiler import CostModel
from wattbit.serving.bundle import load_bundle, save_bundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.shadow import disagreement
from wattbit.storage.fingerprint import model_fingerprint
from workloads.workload import Workload

log = logging.getLogger("wattbit.train")


class TrainingRun:
    """One run of train.py: profile, learn, compare, certify, export, report.

    Args:
        settings: What to do.
        folder: Where everything is written.
        console: What people see.
    """

    def __init__(self, settings: TrainingSettings, folder: RunFolder, console: Console) -> None:
        self._started = time.perf_counter()
        self._settings = settings
        self._folder = folder
        self._console = console
        self._stages = Stages(console)
        self._notes: list[str] = []
        self._stop = StopRule(settings.time_limit_s)

    def run(self) -> None:
        """Run every stage."""
        settings = self._settings
        use_threads(settings.threads)
        self._say(settings.energy.note)
        with self._stages.stage("model", "load model and data"):
            workload = build_workload(settings.workload)
        self._say(f"Workload {workload.name}: {workload.description}.")
        with self._stages.stage("reference", "run the reference on every split"):
            check = check_reference(workload)
        self._say(check.text)
        for warning in check.warnings:
            self._say(f"WARNING: {warning}.")
        with build_model(workload, settings.precisions) as model:
            require_same_reference(model, workload, check)
            coverage = coverage_of(model, check.macs)
            self._say(f"Coverage: {coverage.text}.")
            profile, costs = self._profile(model, workload, coverage)
            known = {outcome.plan: outcome for outcome, _ in Journal(self._folder.journal).read(profile)}
            evaluator = build_evaluator(
                model, workload, profile, known,
                load=settings.workload, workers=settings.workers, threads=settings.threads,
            )  # fmt: skip
            if evaluator.sharing.refusal:
                self._say(f"Plans share no work, each runs by itself: {evaluator.sharing.refusal}.")
            guardrail = settings.guardrail.resolve(evaluator.reference_accuracy)
            tolerances = with_tolerance(settings.tolerances_pp, guardrail.tolerance_pp)
            self._note_hopeless_tolerances(len(workload.splits["certify"]), tolerances, guardrail)
            comparison, agent = self._search(evaluator, tolerances, guardrail)
            with self._stages.stage("certify", "certify and compare") as update:
                judged = judge_search(
                    workload, model, evaluator, comparison, agent, guardrail, settings.origin, update
                )
            results = replace(
                judged.results,
                seed=settings.seed,
                status=self._stop.status,
                warnings=check.warnings,
                notes=tuple(self._notes),
                energy_note=settings.energy.note,
            )
            origin = {**judged.bundle.workload, "warnings": list(check.warnings)}
            judged = replace(judged, results=results, bundle=replace(judged.bundle, workload=origin))
            if profile.provenance != "modelled":
                with self._stages.stage("confirm", "confirm end to end"):
                    judged = confirmed(judged, costs)
        judged = self._export(judged)
        self._check_export(judged, workload)
        show = full_screen if settings.verbose else last_screen
        self._console.print(show(judged.results))
        for name in ("report.html", "results.json", "bundle"):
            self._say(f"{name:<13}{self._folder.path / name}")

    # --- profile ----------------------------------------------------------------------------------------

    def _profile(
        self, model: SwitchableModel, workload: Workload, coverage: Coverage
    ) -> tuple[ModelProfile, CostModel]:
        make_costs = self._settings.energy.costs
        if workload.sensitivity == "gradient":
            self._notes.append("sensitivities are estimated from derivatives; large ones are measured")
        fingerprint = model_fingerprint(workload.model)
        known = self._folder.load_state(fingerprint)
        if known is not None:
            self._say("Going on with an interrupted run: its profile and every plan it evaluated are kept.")
            model.load_calibration(calibration_from_json(known[1]))
            return replace(known[0], coverage=coverage), make_costs(model, workload.splits["calibrate"])
        with self._stages.stage("profile", "profile layers") as update:
            profile, costs = profile_model(
                model,
                workload,
                make_costs,
                workers=self._settings.workers,
                progress=lambda done, total: update(done, total, ""),
            )
        profile = replace(profile, coverage=coverage)
        self._folder.save_state(fingerprint, profile, calibration_to_json(model.calibration))
        return profile, costs

    def _note_hopeless_tolerances(
        self, samples: int, tolerances: Sequence[float], guardrail: Guardrail
    ) -> None:
        for tolerance in tolerances:
            message = feasible_before_search(samples, tolerance, guardrail.alpha, guardrail.strict)
            if message:
                self._notes.append(message)
                self._say(f"Note: {message}.")

    # --- learn and compare ------------------------------------------------------------------------------

    def _search(
        self, evaluator: PlanEvaluator, tolerances: tuple[float, ...], guardrail: Guardrail
    ) -> tuple[SearchComparison, PPOAgent]:
        profile = evaluator.profile
        gate = self._settings.gate
        with (
            Journal(self._folder.journal) as journal,
            stop_on_signals(self._stop, self._console),
            workers_ended(evaluator),
        ):
            comparison = SearchComparison(
                evaluator=evaluator,
                reference=evaluator.evaluate(profile.reference_plan),
                gate=gate,
                tolerances_pp=tolerances,
                stop=self._stop,
                journal=journal,
                listener=lambda method, done, total, note: self._update(done, total, f"{method} {note}"),
                allowed=lambda o: not guardrail.violations(o.latency_ms, profile.plan_memory_bytes(o.plan)),
            )
            comparison.restore(journal.read(profile))
            comparison.on_new = lambda outcome, method: self._keep_best(comparison, outcome)
            going = self._run_baselines(comparison, len(profile.precisions))
            method = self._method(comparison.pp_per_nat(), tolerances)
            if going:
                with self._stages.stage("train", "train the policy") as self._update:
                    budget = self._settings.agent_budget
                    going = comparison.run(method, budget, self._settings.seed, seeded=True)
        if not going:
            self._say(f"Search stopped early ({self._stop.status}); going on with the best plans so far.")
        return comparison, method.ppo

    def _run_baselines(self, comparison: SearchComparison, uniform_plans: int) -> bool:
        """Run every baseline; False if the search has to stop."""
        baselines: list[SearchMethod] = [Uniform(), Greedy(), ILP(), Random()]
        going = True
        with self._stages.stage("compare", "evaluate baselines") as self._update:
            for method in baselines:
                # Uniform plans are few, and a comparison without them would say nothing.
                budget = uniform_plans if method.name == "uniform" else self._settings.baseline_budget
                going = going and comparison.run(method, budget, self._settings.seed)
        return going

    def _method(self, pp_per_nat: float, tolerances: Sequence[float]) -> PPOSearch:
        env = self._settings.env
        low, high = env.arguments["tolerance_range_pp"]
        # Wide enough for every tolerance asked for: beyond it the policy would extrapolate.
        widened = [min(low, *tolerances), max(high, *tolerances)]
        return self._settings.ppo_search(
            make_env=partial(env, pp_per_nat=pp_per_nat, tolerance_range_pp=widened),
            tensorboard_log=self._folder.tensorboard,
            checkpoint=self._folder.checkpoint,
        )

    def _keep_best(self, comparison: SearchComparison, outcome: Outcome) -> None:
        """Keep the best feasible plans on disk at any moment."""
        best = {t: comparison.archive.best(t) for t in comparison.tolerances_pp}
        if all(found.plan != outcome.plan for found in best.values()):
            return
        plans = [
            {"tolerance_pp": t, "energy_j": o.energy_j, "search_drop_pp": o.drop_pp, "precisions": {**o.plan}}
            for t, o in best.items()
        ]
        provenance = comparison.evaluator.profile.provenance
        note = "best plans that pass the search gate so far; not certified"
        self._folder.write_json(
            "best.json", {"schema": 2, "note": note, "provenance": provenance, "plans": plans}
        )

    # --- export -----------------------------------------------------------------------------------------

    def _export(self, judged: Judged) -> Judged:
        """Write results, report and bundle; the bundle last, because it carries the report."""
        with self._stages.stage("report", "draw the report"):
            results = replace(
                judged.results,
                seconds={**self._stages.seconds, "total": time.perf_counter() - self._started},
                peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            )
            self._folder.write_text("results.json", results.to_json())
            write_report(self._folder.path, results)
        extra = {"report.html": (self._folder.path / "report.html").read_bytes()}
        if self._folder.checkpoint.exists():
            extra["ppo.zip"] = self._folder.checkpoint.read_bytes()
        save_bundle(judged.bundle, self._folder.bundle, extra)
        return replace(judged, results=results)

    def _check_export(self, judged: Judged, workload: Workload) -> None:
        """Load what was exported as a serving process would, and run a batch; the audit log starts here."""
        with AuditLog(self._folder.audit) as audit:
            for plan in judged.bundle.plans:
                audit.append("certificate", certificate_record(plan, judged.results))
        batch = select(workload.splits["test"].inputs, slice(0, workload.batch_size))
        expected = predict(workload.model, batch, workload.batch_size)
        runtime = self._settings.runtime(
            controller=PrecisionController(load_bundle(self._folder.bundle)),
            model=workload.model,
            tolerance_pp=max((plan.tolerance_pp for plan in judged.bundle.plans), default=1.0),
            shadow_share=0.0,  # a shadowed batch is answered by the reference, and would show nothing
            audit_path=str(self._folder.audit),
        )
        with runtime, torch.inference_mode():
            differs = disagreement(call_model(runtime, batch), expected)
        agreement = 1.0 - sum(differs) / len(differs)
        log.info("the exported bundle agrees with the reference on %.2f %% of a batch", 100 * agreement)

    def _say(self, message: str) -> None:
        self._console.print(message, highlight=False, soft_wrap=True, markup=False)


def with_tolerance(tolerances: Sequence[float], own_pp: float) -> tuple[float, ...]:
    """The tolerances and the guardrail's own, ascending; one that prints like another is not added."""
    printed = {f"{tolerance:g}" for tolerance in tolerances}
    added = [] if f"{own_pp:g}" in printed else [own_pp]
    return tuple(sorted({*tolerances, *added}))
