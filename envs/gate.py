"""The search gate: which plans the search may hope to certify at a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from envs.evaluators.evaluator import Outcome
from wattbit.errors import ConfigError
from wattbit.judging.noninferiority import PairedCounts, upper_bound_pp


@dataclass(frozen=True, slots=True)
class SearchGate:
    """Compares a bound on the drop, rather than the drop seen, with the tolerance.

    The search looks at many plans and keeps the luckiest; a one-sided upper bound takes some of that luck
    out.

    Attributes:
        alpha: Level of the one-sided bound (`wattbit.judging.noninferiority.upper_bound_pp`); 0.5 compares
            the drop as observed.

    Raises:
        ConfigError: If alpha is not above 0 and at most 0.5.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 0.5:
            raise ConfigError(
                f"gate alpha is {self.alpha}, must be above 0 and at most 0.5; 0.2 is the default"
            )

    def bound_pp(self, counts: PairedCounts) -> float:
        """The drop that is judged, percentage points."""
        return _bound_pp(counts, self.alpha)

    def bounds_pp(self, outcomes: Sequence[Outcome]) -> list[float]:
        """The drop that is judged of each of several plans, percentage points."""
        return [self.bound_pp(outcome.counts) for outcome in outcomes]

    def passes(self, counts: PairedCounts, tolerance_pp: float) -> bool:
        """True if a plan with these paired outcomes may be proposed at ``tolerance_pp``."""
        return self.bound_pp(counts) <= tolerance_pp


# Every episode asks for a bound, and few counts are new: bisection would be most of an episode's time.
@lru_cache(maxsize=65_536)
def _bound_pp(counts: PairedCounts, alpha: float) -> float:
    return counts.drop_pp if alpha == 0.5 else upper_bound_pp(counts, alpha)
