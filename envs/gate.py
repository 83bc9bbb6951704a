"""The search gate: which plans the search may hope to certify at a tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from wattbit.errors import ConfigError
from wattbit.paired import PairedCounts, upper_bound_pp


@dataclass(frozen=True, slots=True)
class SearchGate:
    """Compares a bound on the drop, rather than the drop seen, with the tolerance.

    The search looks at many plans and keeps the luckiest; a one-sided upper bound takes some of that luck out.

    Attributes:
        alpha: Level of the one-sided bound (Tango's score bound); 0.5 compares the drop as observed.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 0.5:
            raise ConfigError(f"gate alpha is {self.alpha}, must be above 0 and at most 0.5; 0.2 is the default")

    def bound_pp(self, counts: PairedCounts) -> float:
        """The drop that is judged, percentage points."""
        if self.alpha == 0.5:
            return counts.drop_pp
        return upper_bound_pp(counts, self.alpha)

    def passes(self, counts: PairedCounts, tolerance_pp: float) -> bool:
        """True if a plan with these paired outcomes may be proposed at ``tolerance_pp``."""
        return self.bound_pp(counts) <= tolerance_pp
