"""What a run came to: the value in ``results.json``, which every table, figure and report is drawn from.

A run that was interrupted leaves things out; they are None or empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from report.plan_result import ArchivedPlan, DeployedPlan, PlanResult, PlanSequence
from report.typed_json import REMEDY, read_value
from wattbit.coverage import Coverage
from wattbit.errors import ConfigError
from wattbit.guardrail import Guardrail
from wattbit.profile import LayerProfile, Provenance
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import dump_json, parse_json

RESULTS_SCHEMA = 2

_MOST_BYTES = 2**26

LEARNED = ("ppo", "policy")
"""The methods that are not baselines."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Which model it was: its fingerprint, its number of parameters, how many layers can switch."""

    fingerprint: str
    parameters: int
    switchable_layers: int


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """The unmodified model: accuracies from 0 to 1 (``accuracy``: on ``search``) and cost per inference."""

    accuracy: float | None = None
    certify_accuracy: float | None = None
    test_accuracy: float | None = None
    energy_j: float | None = None
    latency_ms: float | None = None

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy by split, where it is known."""
        found = {"search": self.accuracy, "certify": self.certify_accuracy, "test": self.test_accuracy}
        return {split: accuracy for split, accuracy in found.items() if accuracy is not None}


@dataclass(frozen=True, slots=True)
class BestSaving:
    """Share of the reference energy that the best plan known for a tolerance saves."""

    tolerance_pp: float
    saving: float | None = None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of the learning curve; ``entropy`` is the policy's, in nats."""

    timesteps: int
    mean_reward: float | None = None
    entropy: float | None = None
    evaluations: int | None = None
    best_saving: tuple[BestSaving, ...] = ()

    def saving_at(self, tolerance_pp: float) -> float | None:
        """The best saving at ``tolerance_pp``."""
        return next((b.saving for b in self.best_saving if b.tolerance_pp == tolerance_pp), None)


@dataclass(frozen=True, slots=True)
class RunResults:
    """The results of a run.

    Attributes:
        workload: Name of the workload.
        provenance: Where every energy figure comes from.
        description: The workload in a phrase.
        command: What was called.
        seed: The run's seed.
        status: ``finished``, or why the search stopped.
        warnings: What makes the certificates worth little, a sentence each.
        notes: What a reader should know, a sentence each.
        energy_note: How the energy source was chosen.
        model: The model.
        device: The device the energies hold for.
        reference: The model at the reference precision.
        precisions: What layers could choose from, the reference first.
        tolerances_pp: The tolerances served, ascending.
        guardrail: The limits; its tolerance is replaced by each of ``tolerances_pp``.
        interval_level: Level of the intervals of drops.
        splits: Samples per split.
        plans: Every method's plan for every tolerance.
        deployed: What runs at each tolerance.
        sequences: What was tested for each tolerance.
        coverage: What of the model can switch.
        layers: The profile's layers in execution order.
        archive: Every plan evaluated.
        learning_curve: How the policy learned.
        seconds: Time by stage.
        peak_rss_mb: Most memory used, megabytes.
    """

    workload: str
    provenance: Provenance
    description: str = ""
    command: str = ""
    seed: int | None = None
    status: str = "unknown"
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    energy_note: str = ""
    model: ModelFacts | None = None
    device: str = "unknown device"
    reference: ReferenceResult = field(default_factory=ReferenceResult)
    precisions: tuple[str, ...] = ()
    tolerances_pp: tuple[float, ...] = ()
    guardrail: Guardrail | None = None
    interval_level: float = 0.95
    splits: Mapping[str, int] = field(default_factory=dict)
    plans: tuple[PlanResult, ...] = ()
    deployed: tuple[DeployedPlan, ...] = ()
    sequences: tuple[PlanSequence, ...] = ()
    coverage: Coverage | None = None
    layers: tuple[LayerProfile, ...] = ()
    archive: tuple[ArchivedPlan, ...] = ()
    learning_curve: tuple[CurvePoint, ...] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    peak_rss_mb: float | None = None

    def to_json(self) -> str:
        """The results as a JSON document that `from_json` reads."""
        return dump_json({"schema": RESULTS_SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> RunResults:
        """Read what `to_json` wrote; what is absent or null takes its default.

        Raises:
            ConfigError: If it is no JSON object, the schema is another one, or a field is unknown, missing or
                of the wrong type; the message names the field.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"results are not valid JSON: {error}; {REMEDY}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"results are a JSON {type(data).__name__}, not an object; {REMEDY}")
        schema = data.pop("schema", None)
        if schema != RESULTS_SCHEMA:
            raise ConfigError(f"results schema {schema!r:.40} is not {RESULTS_SCHEMA}; {REMEDY}")
        results: RunResults = read_value(cls, data, "results")
        return results

    @property
    def finished(self) -> bool:
        """True if the run came to its own end."""
        return self.status == "finished"

    @property
    def withheld(self) -> str:
        """Why no saving is claimed; empty if one is."""
        return "" if self.coverage is None else self.coverage.withheld

    def saving_text(self, plan: PlanResult) -> str:
        """The saving of ``plan``, unless it is withheld."""
        return "withheld" if self.withheld else plan.saving_text

    @property
    def interval_name(self) -> str:
        """What the intervals are called: ``95 % interval``."""
        return f"{100 * self.interval_level:g} % interval"

    @property
    def reference_precision(self) -> str:
        """The precision of the unmodified model; ``reference`` where the file does not say."""
        return self.precisions[0] if self.precisions else "reference"

    @property
    def main_tolerance_pp(self) -> float | None:
        """The tolerance that methods are compared at: the guardrail's, or the one nearest to 1 pp."""
        wanted = 1.0 if self.guardrail is None else self.guardrail.tolerance_pp
        return min(self.tolerances_pp, key=lambda t: (abs(t - wanted), t), default=None)

    @property
    def headline_tolerance_pp(self) -> float | None:
        """The main tolerance, or where nothing is deployed there the nearest with a deployed plan."""
        deployed = [t for t in self.tolerances_pp if self.deployed_at(t) is not None]
        main = self.main_tolerance_pp
        if main is None or not deployed:
            return main
        return min(deployed, key=lambda t: (abs(t - main), t))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The switchable layers in execution order, from the profile or, without one, from the first plan."""
        if self.layers:
            return tuple(layer.name for layer in self.layers)
        return next((tuple(plan.precisions) for plan in self.plans if plan.precisions), ())

    def deployed_at(self, tolerance_pp: float | None) -> PlanResult | None:
        """The certified plan for ``tolerance_pp``; None where the reference runs."""
        return next((entry.plan for entry in self.deployed if entry.tolerance_pp == tolerance_pp), None)

    @property
    def confirmed(self) -> tuple[tuple[tuple[float, ...], PlanResult], ...]:
        """The deployed plans that were metered end to end, each with the tolerances it is deployed at."""
        plans: dict[str, PlanResult] = {}
        tolerances: dict[str, list[float]] = {}
        for tolerance_pp in self.tolerances_pp:
            plan = self.deployed_at(tolerance_pp)
            if plan is not None and plan.confirmation is not None:
                plans.setdefault(plan.plan_id, plan)
                tolerances.setdefault(plan.plan_id, []).append(tolerance_pp)
        return tuple((tuple(tolerances[key]), plan) for key, plan in plans.items())

    def plans_at(self, tolerance_pp: float | None) -> tuple[PlanResult, ...]:
        """The plans proposed for ``tolerance_pp``: the deployed one first, then the cheapest first."""
        plans = [plan for plan in self.plans if plan.tolerance_pp == tolerance_pp]
        deployed = self.deployed_at(tolerance_pp)
        if deployed is not None and not any(self.is_deployed(plan) for plan in plans):
            plans.append(deployed)
        return tuple(sorted(plans, key=self._rank))

    def best_baseline(self, tolerance_pp: float) -> PlanResult | None:
        """The cheapest plan of a baseline that passed at ``tolerance_pp``, judged by itself."""
        plans = [plan for plan in self.plans if plan.tolerance_pp == tolerance_pp]
        passed = [plan for plan in plans if plan.verdict == "pass" and plan.method not in LEARNED]
        return min(passed, key=lambda plan: self._rank(plan)[1:], default=None)

    @property
    def groups(self) -> tuple[tuple[float | None, tuple[PlanResult, ...]], ...]:
        """Every tolerance with its plans; those proposed for any tolerance come last, under None."""
        groups = [(t, self.plans_at(t)) for t in (*self.tolerances_pp, None)]
        return tuple((t, plans) for t, plans in groups if plans or t is not None)

    def is_deployed(self, plan: PlanResult) -> bool:
        """True if ``plan`` is what runs at its tolerance."""
        deployed = self.deployed_at(plan.tolerance_pp)
        return deployed is not None and (deployed.plan_id, deployed.method) == (plan.plan_id, plan.method)

    def why_reference(self, tolerance_pp: float) -> str:
        """Why no plan is deployed at ``tolerance_pp``, in one phrase."""
        for sequence in self.sequences:
            if sequence.tolerance_pp == tolerance_pp:
                if not sequence.plans:
                    return "the search found no plan to test that saves energy"
                first = sequence.plans[0]
                reason = f": {'; '.join(first.reasons)}" if first.reasons else ""
                return f"even the most cautious plan tested got the verdict {first.verdict}{reason}"
        plans = self.plans_at(tolerance_pp)
        # The cheapest plan that looked good enough on the search split says most; sorting keeps it first.
        judged = [plan for plan in plans if plan.verdict not in (None, "pass")]
        tested = sorted(judged, key=lambda plan: plan.exceeds(tolerance_pp))
        if tested:
            plan = tested[0]
            reason = f": {plan.reason}" if plan.reason else ""
            return f"{plan.method} was tested, verdict {plan.verdict}{reason}"
        if not self.finished:
            return f"the run ended before a certificate (status: {self.status})"
        return next((plan.reason for plan in plans if plan.reason), "no plan was tested for it")

    def _rank(self, plan: PlanResult) -> tuple[bool, float, str]:
        energy_j = math.inf if plan.energy_j is None else plan.energy_j
        return not self.is_deployed(plan), energy_j, plan.method


def load_results(run_dir: Path) -> RunResults:
    """Read ``run_dir/results.json``.

    Raises:
        ConfigError: If the file is missing, cannot be read, or does not hold the results of a run.
    """
    path = run_dir / "results.json"
    try:
        return RunResults.from_json(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give the folder of a run of train.py"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
