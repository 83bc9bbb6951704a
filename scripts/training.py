"""The job of train.py, stage by stage."""

from __future__ import annotations

import datetime
import logging
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from agents.archive import Journal
from agents.baselines import ILP, Greedy, Random, Uniform
from agents.certification import Deployment, HeldOut, certify_tolerance
from agents.comparison import Comparison
from agents.export import export_policy
from agents.limits import StopRule
from agents.ppo import PPO
from agents.results import (
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
from agents.search_method import SearchMethod
from envs.evaluator import Outcome, PlanEvaluator
from envs.gate import SearchGate
from scripts.build import build, build_costs, build_model, build_workload, plain, use_threads
from scripts.progress import Stages
from scripts.report import write_report
from scripts.run_folder import RunFolder
from scripts.tables import deployed_summary, final_table
from wattbit.audit import AuditLog
from wattbit.batches import batches, predict, select
from wattbit.bundle import ControllerBundle, load_bundle, save_bundle
from wattbit.calibration import calibration_from_json, calibration_to_json
from wattbit.certificate import Certificate, feasible_before_search
from wattbit.controller import PrecisionController
from wattbit.errors import GuardrailError, PrecisionError
from wattbit.features import Context, FeatureEncoder
from wattbit.fingerprint import model_fingerprint
from wattbit.guardrail import Guardrail
from wattbit.layers import REFERENCE, SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.policy import MLPPolicy
from wattbit.precision import parse_precisions
from wattbit.profile import ModelProfile
from wattbit.profiler import measure_profile
from wattbit.runtime import PrecisionRuntime
from workloads.workload import Workload

log = logging.getLogger("wattbit.train")


def train(config: DictConfig) -> None:
    """Run every stage and leave the results in Hydra's output folder."""
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    with folder.discarded_on_failure():
        TrainingRun(config, folder, Console()).run()
    folder.publish(Path("outputs"))


class TrainingRun:
    """One run of train.py.

    Args:
        config: The settings.
        folder: Where everything is written.
        console: What people see.
    """

    def __init__(self, config: DictConfig, folder: RunFolder, console: Console) -> None:
        self._started = time.perf_counter()
        self._config = config
        self._folder = folder
        self._console = console
        self._stages = Stages(console)
        self._notes: list[str] = []
        self._stop = StopRule(config.time_limit_s)

    def run(self) -> None:
        """Profile, learn, compare, certify, export, report."""
        config = self._config
        use_threads(config.threads)
        names = [p.name for p in parse_precisions(config.precisions.names)]
        if names[0] != REFERENCE:
            raise PrecisionError(f"precisions start with {names[0]!r}, the reference {REFERENCE!r} must come first")
        guardrail = build(config.guardrail)
        tolerances = require_tolerances(config.tolerances_pp)
        make_costs, energy_note = build_costs(config.energy)
        self._say(energy_note)
        with self._stages.stage("model", "load model and data"):
            workload = build_workload(config.workload)
        self._say(f"Workload {workload.name}: {workload.description}.")
        with build_model(workload, names) as model:
            fingerprint = model_fingerprint(workload.model)
            profile = self._profile(model, workload, make_costs, fingerprint)
            evaluator = self._evaluator(model, workload, profile)
            guardrail = guardrail.resolve(evaluator.reference_accuracy)
            tolerances = tuple(sorted({*tolerances, guardrail.tolerance_pp}))
            self._warn_if_hopeless(len(workload.splits["certify"]), tolerances, guardrail)
            comparison, agent = self._search(evaluator, tolerances)
            results = self._judge(workload, model, comparison, agent, tolerances, guardrail, energy_note, fingerprint)
        self._last_check(workload)
        self._finish(results)

    # --- profile ----------------------------------------------------------------------------------------

    def _profile(
        self, model: SwitchableModel, workload: Workload, make_costs: Any, fingerprint: str
    ) -> ModelProfile:
        split = workload.splits["calibrate"]
        known = self._folder.load_state(fingerprint)
        if known is not None:
            self._say("Going on with the interrupted run: its profile and every plan it evaluated are used again.")
            model.load_calibration(calibration_from_json(known[1]))
            return known[0]
        with self._stages.stage("profile", "profile layers") as update:
            model.calibrate(batches(split.inputs, workload.batch_size))
            costs = make_costs(model, split)
            profile = measure_profile(
                model, split.inputs, costs, batch_size=workload.batch_size,
                progress=lambda done, total: update(done, total, ""),
            )  # fmt: skip
        self._folder.save_state(fingerprint, profile, calibration_to_json(model.calibration))
        return profile

    def _evaluator(self, model: SwitchableModel, workload: Workload, profile: ModelProfile) -> PlanEvaluator:
        known = {outcome.plan: outcome for outcome, _ in Journal(self._folder.journal).read(profile)}
        split = workload.splits["search"]
        return PlanEvaluator(
            model, profile, split.inputs, split.labels, batch_size=workload.batch_size, known=known
        )

    def _warn_if_hopeless(self, samples: int, tolerances: Sequence[float], guardrail: Guardrail) -> None:
        for tolerance in tolerances:
            message = feasible_before_search(samples, tolerance, guardrail.alpha, guardrail.strict)
            if message:
                self._notes.append(message)
                self._say(f"Note: {message}.")

    # --- learn and compare ------------------------------------------------------------------------------

    def _search(self, evaluator: PlanEvaluator, tolerances: tuple[float, ...]) -> tuple[Comparison, PPO]:
        gate: SearchGate = build(self._config.env.gate)
        journal = Journal(self._folder.journal)
        comparison = Comparison(
            evaluator, evaluator.evaluate(evaluator.profile.reference_plan), gate, tolerances, self._stop, journal,
            listener=lambda method, done, total, note: self._update(done, total, f"{method} {note}"),
        )  # fmt: skip
        comparison.restore(journal.read(evaluator.profile))
        comparison.on_new = lambda outcome, method: self._keep_best(comparison, outcome)
        budget = self._config.budget
        baselines: list[SearchMethod] = [Uniform(), Greedy(), ILP(), Random()]
        with stop_on_signals(self._stop, self._console):
            going = True
            with self._stages.stage("compare", "evaluate baselines") as self._update:
                for method in baselines:
                    # Uniform plans are few, and a comparison without them would say nothing.
                    limit = len(evaluator.profile.precisions) if method.name == "uniform" else budget.baseline
                    going = going and comparison.run(method, limit, self._config.seed)
            agent = self._agent(comparison.pp_per_nat(), gate)
            if going:
                with self._stages.stage("train", "train the policy") as self._update:
                    going = comparison.run(agent, budget.agent, self._config.seed, seeded=True)
        journal.close()
        if not going:
            self._say(f"Search stopped early ({self._stop.status}); going on with the best plans found so far.")
        return comparison, agent

    def _agent(self, pp_per_nat: float, gate: SearchGate) -> PPO:
        make_env = build(self._config.env, _partial_=True, pp_per_nat=pp_per_nat, gate=gate)
        agent: PPO = build(
            self._config.agent,
            make_env=make_env,
            tensorboard_log=str(self._folder.tensorboard),
            checkpoint=str(self._folder.checkpoint),
        )
        self._pp_per_nat = pp_per_nat
        return agent

    def _keep_best(self, comparison: Comparison, outcome: Outcome) -> None:
        """Keep the best feasible plans on disk at any moment."""
        archive = comparison.archive
        improved = [t for t in comparison.tolerances_pp if archive.best(t).plan == outcome.plan]
        if improved:
            best = {f"{t:g}": archive.best(t) for t in comparison.tolerances_pp}
            self._folder.write_json(
                "best.json",
                {
                    "schema": 1,
                    "provenance": comparison.evaluator.profile.provenance,
                    "note": "best plans that pass the search gate so far; not certified",
                    "plans": {
                        key: {"energy_j": o.energy_j, "search_drop_pp": o.drop_pp, "precisions": dict(o.plan)}
                        for key, o in best.items()
                    },
                },
            )

    # --- certify and export -----------------------------------------------------------------------------

    def _judge(
        self,
        workload: Workload,
        model: SwitchableModel,
        comparison: Comparison,
        agent: PPO,
        tolerances: tuple[float, ...],
        guardrail: Guardrail,
        energy_note: str,
        fingerprint: str,
    ) -> dict[str, Any]:
        evaluator, archive = comparison.evaluator, comparison.archive
        profile = evaluator.profile
        policy = None if agent.model is None else export_policy(agent.model, profile.precisions, self._pp_per_nat)
        proposals = _proposals(policy, profile, tolerances)
        guardrails = {tolerance: replace(guardrail, tolerance_pp=tolerance) for tolerance in tolerances}
        with self._stages.stage("certify", "certify and compare") as update:
            certify = HeldOut(model, workload.splits["certify"], workload.batch_size)
            test = HeldOut(model, workload.splits["test"], workload.batch_size)
            deployments = [certify_tolerance(archive, certify, profile, guardrails[t]) for t in tolerances]
            records = []
            found = found_plans(comparison.runs, proposals, profile, tolerances)
            for done, item in enumerate(found, 1):
                records.append(plan_record(item, evaluator, certify, test, guardrails[item.tolerance_pp]))
                update(done, len(found), item.method)
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        certificates = _certificates(deployments, workload, guardrail, fingerprint, created)
        results = {
            "schema": RESULTS_SCHEMA,
            "status": self._stop.status,
            "workload": workload.name,
            "description": workload.description,
            "command": f"python {' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))}",
            "model": {
                "fingerprint": fingerprint,
                "parameters": sum(p.numel() for p in workload.model.parameters()),
                "switchable_layers": len(profile.layers),
            },
            "device": profile.device,
            "seed": self._config.seed,
            "provenance": profile.provenance,
            "energy_note": energy_note,
            "reference": {
                "accuracy": evaluator_accuracy(evaluator),
                "energy_j": profile.reference_energy_j,
                "latency_ms": profile.plan_latency_ms(profile.reference_plan),
                "certify_accuracy": certify.reference_accuracy,
                "test_accuracy": test.reference_accuracy,
            },
            "precisions": list(profile.precisions),
            "tolerances_pp": list(tolerances),
            "guardrail": guardrail.as_dict(),
            "splits": {name: len(split) for name, split in workload.splits.items()},
            "notes": self._notes,
            "plans": records,
            "deployed": deployed_records(deployments, archive, certify, test, profile),
            "sequences": sequence_records(deployments),
            "profile": profile_record(profile),
            "archive": archive_records(archive),
            "learning_curve": [_curve_record(point) for point in agent.learning_curve],
        }
        self._bundle = ControllerBundle(
            plans=bundled_plans(deployments, archive, certify, profile),
            compared=tuple(compared_plan(record, profile) for record in records),
            profile=profile,
            calibration_json=calibration_to_json(model.calibration),
            certificates=certificates,
            policy=policy,
            model_fingerprint=fingerprint,
            workload=_workload_record(self._config),
            versions=_versions(),
            created=created,
        )
        self._export(results)
        return results

    def _export(self, results: dict[str, Any]) -> None:
        """Write results, report and bundle; the bundle last, because it carries the report."""
        spent = self._stages.seconds
        results["seconds"] = {**spent, "total": time.perf_counter() - self._started}
        results["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._folder.write_json("results.json", results)
        with self._stages.stage("report", "draw the report"):
            write_report(self._folder.path, results)
        extra = {"report.html": (self._folder.path / "report.html").read_bytes()}
        if self._folder.checkpoint.exists():
            extra["ppo.zip"] = self._folder.checkpoint.read_bytes()
        save_bundle(self._bundle, self._folder.bundle, extra)

    def _last_check(self, workload: Workload) -> None:
        """Load what was exported as a serving process would, and run a batch."""
        split = workload.splits["test"]
        batch = select(split.inputs, slice(0, workload.batch_size))
        expected = predict(workload.model, batch, workload.batch_size)
        with AuditLog(self._folder.audit) as audit:
            for plan in self._bundle.plans:
                audit.append(
                    "certificate",
                    {
                        "plan_id": plan.plan.plan_id,
                        "tolerance_pp": plan.tolerance_pp,
                        "verdict": plan.verdict,
                        "drop_pp": plan.drop_pp,
                        "saving": plan.saving,
                        "provenance": plan.provenance,
                    },
                )
        tolerance = max((plan.tolerance_pp for plan in self._bundle.plans), default=1.0)
        runtime: PrecisionRuntime = build(
            self._config.runtime,
            controller=PrecisionController(load_bundle(self._folder.bundle)),
            model=workload.model,
            tolerance_pp=tolerance,
            audit_path=str(self._folder.audit),
        )
        with runtime, torch.inference_mode():
            logits = runtime(batch)
        agreement = float((logits.argmax(1) == expected.argmax(1)).double().mean())
        log.info("runtime check: %.2f %% of predictions agree with the reference", 100 * agreement)

    def _finish(self, results: dict[str, Any]) -> None:
        self._console.print(final_table(results))
        self._console.print(deployed_summary(results))
        path = self._folder.path
        self._say(f"Report: {path / 'report.html'}   bundle: {path / 'bundle'}   results: {path / 'results.json'}")

    def _say(self, message: str) -> None:
        self._console.print(message, highlight=False, soft_wrap=True, markup=False)
        log.debug(message)


def require_tolerances(values: Sequence[float]) -> tuple[float, ...]:
    """Check the tolerances to serve.

    Raises:
        GuardrailError: If one is not above 0.
    """
    tolerances = tuple(float(value) for value in values)
    for tolerance in tolerances:
        Guardrail(tolerance)
    if not tolerances:
        raise GuardrailError("tolerances_pp is empty, needs at least one; [0.25,0.5,1,2] is the default")
    return tolerances


def evaluator_accuracy(evaluator: Any) -> float:
    """Accuracy of the reference on the search split."""
    return float(evaluator.reference_accuracy)


@contextmanager
def stop_on_signals(stop: StopRule, console: Console) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the search and keeps its result; the second ends the program."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()
        console.print("Stopping after this evaluation; once more to quit at once.", highlight=False)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _proposals(
    policy: MLPPolicy | None, profile: ModelProfile, tolerances: Sequence[float]
) -> dict[float, PrecisionPlan]:
    """What the learned policy alone would do at each tolerance."""
    if policy is None:
        return {}
    encoder = FeatureEncoder(profile, policy.pp_per_nat)
    return {tolerance: policy.propose(encoder, Context(tolerance)) for tolerance in tolerances}


def _certificates(
    deployments: Sequence[Deployment], workload: Workload, guardrail: Guardrail, fingerprint: str, created: str
) -> tuple[Certificate, ...]:
    split = workload.splits["certify"]
    return tuple(
        Certificate(
            guardrail=replace(guardrail, tolerance_pp=deployment.tolerance_pp),
            judgements={outcome.plan.plan_id: judgement for outcome, judgement in deployment.sequence},
            model_fingerprint=fingerprint,
            data_fingerprint=split.fingerprint(),
            samples=len(split),
            created=created,
        )
        for deployment in deployments
    )


def _curve_record(point: Any) -> dict[str, Any]:
    return {name: getattr(point, name) for name in point.__slots__}


def _workload_record(config: DictConfig) -> dict[str, Any]:
    chosen = HydraConfig.get().runtime.choices
    return {
        "name": chosen["workload"],
        "arguments": {key: value for key, value in plain(config.workload).items() if key != "_target_"},
        "guardrail": chosen["guardrail"],
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("wattbit", "torch", "numpy")}}
