"""What became of single plans: proposed by a method, tested, deployed, metered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from report.end_to_end import EndToEnd
from report.formatting import format_percent
from wattbit.judging.judgement import Verdict


@dataclass(frozen=True, slots=True)
class PlanResult:
    """One plan that a method proposed for a tolerance (None: for any), and what became of it.

    Energies in joules and latency in milliseconds per inference; drops and intervals in percentage points.
    ``energy_j`` and ``saving`` add up layers, whatever ``confirmation`` says. What is not known is None.
    """

    method: str
    tolerance_pp: float | None = None
    plan_id: str = ""
    precisions: Mapping[str, str] = field(default_factory=dict)
    energy_j: float | None = None
    saving: float | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None
    search_drop_pp: float | None = None
    evaluations: int | None = None
    seconds: float | None = None
    verdict: Verdict | None = None
    reason: str = ""
    certify_drop_pp: float | None = None
    certify_interval_pp: tuple[float, float] | None = None
    test_drop_pp: float | None = None
    test_interval_pp: tuple[float, float] | None = None
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
class DeployedPlan:
    """The certified plan of a tolerance; None where the reference runs."""

    tolerance_pp: float
    plan: PlanResult | None = None


@dataclass(frozen=True, slots=True)
class JudgedPlan:
    """A plan of the sequence that was tested for a tolerance, and what the test said; see `Judgement`."""

    plan_id: str
    verdict: Verdict
    energy_j: float | None = None
    reasons: tuple[str, ...] = ()
    drop_pp: float | None = None
    upper_pp: float | None = None
    needed_samples: int | None = None


@dataclass(frozen=True, slots=True)
class PlanSequence:
    """The plans that were tested for a tolerance, in the order tested."""

    tolerance_pp: float
    plans: tuple[JudgedPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class ArchivedPlan:
    """One plan evaluated during the search."""

    method: str
    energy_j: float
    search_drop_pp: float
