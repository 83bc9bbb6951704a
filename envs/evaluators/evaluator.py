"""The costly seam between environment and model: plans in, their outcomes on the search split out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one plan costs and what it does to accuracy on the search split.

    Attributes:
        plan: The plan.
        energy_j: Energy per inference by the profile's additive model, joules.
        latency_ms: Time per inference by the profile's additive model, milliseconds.
        counts: Paired outcomes against the reference.
        divergence: Mean Kullback-Leibler divergence from the reference output, nats.
    """

    plan: PrecisionPlan
    energy_j: float
    latency_ms: float
    counts: PairedCounts
    divergence: float

    @property
    def drop_pp(self) -> float:
        """Observed drop in percentage points."""
        return self.counts.drop_pp


class Evaluator(Protocol):
    """Evaluates plans of one model; `PlanEvaluator` runs them."""

    @property
    def profile(self) -> ModelProfile:
        """The model's profile."""

    @property
    def evaluations(self) -> int:
        """Number of distinct plans run so far."""

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        """The outcome of ``plan``; a plan that was evaluated before costs nothing."""

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        """The outcome of each of ``plans``, in the order given; what is given twice is run once."""
