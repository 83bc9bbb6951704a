"""What a run came to, as values: the content of ``results.json`` that tables, figures and report draw on.

A run that was interrupted leaves things out; they are None or empty here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from report.end_to_end import EndToEnd
from report.formatting import format_percent


@dataclass(frozen=True, slots=True)
class PlanResult:
    """One plan that a method proposed for a tolerance (None: for any), and what became of it.

    Energies in joules and latency in milliseconds per inference; drops and intervals in percentage points.
    ``energy_j`` and ``saving`` add up layers, whatever ``confirmation`` says.
    """

    method: str
    tolerance_pp: float | None
    plan_id: str
    precisions: Mapping[str, str]
    energy_j: float | None
    saving: float | None
    latency_ms: float | None
    memory_bytes: float | None
    search_drop_pp: float | None
    certify_drop_pp: float | None
    certify_interval_pp: tuple[float, float] | None
    test_drop_pp: float | None
    test_interval_pp: tuple[float, float] | None
    verdict: str | None
    reason: str
    evaluations: float | None
    seconds: float | None
    confirmation: EndToEnd | None = None

    @property
    def saving_text(self) -> str:
        """The saving by the sum of layers, unless no saving showed end to end."""
        finding = "saves" if self.confirmation is None else self.confirmation.finding
        return {"saves": format_percent(self.saving), "unclear": "unclear", "costs": "none"}[finding]

    def exceeds(self, tolerance_pp: float) -> bool:
        """True if the drop on the search split is above ``tolerance_pp`` or not known."""
        return self.search_drop_pp is None or self.search_drop_pp > tolerance_pp


@dataclass(frozen=True, slots=True)
class JudgedPlan:
    """A plan of the sequence that was tested for a tolerance, and what the test said."""

    plan_id: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A layer's name and its sensitivity (nats) at every precision it supports."""

    name: str
    sensitivity: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class ArchivedPlan:
    """One plan evaluated during the search."""

    method: str
    energy_j: float
    search_drop_pp: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of the learning curve; ``best_saving`` is keyed by tolerance in percentage points."""

    timesteps: float
    mean_reward: float | None
    best_saving: Mapping[float, float | None]


@dataclass(frozen=True, slots=True)
class RunResults:
    """A run's results, checked and typed.

    Attributes not named by ``results.json`` in the same words:
        reference_accuracies: Accuracy (0 to 1) of the reference by split.
        deployed: The certified plan of each tolerance; None where the reference runs.
        sequences: The plans that were tested for each tolerance, in the order tested.
    """

    workload: str
    description: str
    status: str
    device: str
    provenance: str
    energy_note: str
    seed: str
    command: str
    model: Mapping[str, str]
    reference_accuracies: Mapping[str, float]
    reference_energy_j: float | None
    reference_latency_ms: float | None
    precisions: tuple[str, ...]
    tolerances_pp: tuple[float, ...]
    guardrail: Mapping[str, str]
    guardrail_tolerance_pp: float | None
    interval_level: float
    splits: Mapping[str, str]
    notes: tuple[str, ...]
    plans: tuple[PlanResult, ...]
    deployed: Mapping[float, PlanResult | None]
    sequences: Mapping[float, tuple[JudgedPlan, ...]]
    layers: tuple[LayerResult, ...]
    archive: tuple[ArchivedPlan, ...]
    learning_curve: tuple[CurvePoint, ...]
    seconds: Mapping[str, float | None]
    peak_rss_mb: float | None

    @property
    def finished(self) -> bool:
        """True if the run came to its own end."""
        return self.status == "finished"

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
        wanted = 1.0 if self.guardrail_tolerance_pp is None else self.guardrail_tolerance_pp
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
        return None if tolerance_pp is None else self.deployed.get(tolerance_pp)

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
        if tolerance_pp in self.sequences:
            sequence = self.sequences[tolerance_pp]
            if not sequence:
                return "the search found no plan to test that saves energy"
            reason = f": {sequence[0].reason}" if sequence[0].reason else ""
            return f"even the most cautious plan tested got the verdict {sequence[0].verdict}{reason}"
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
