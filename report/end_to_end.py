"""What a plan gave end to end: words claim a saving only where the interval excludes that there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from report.formatting import format_error, format_percent, format_share_interval
from wattbit.profile import Provenance


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """What a whole model under a plan gave against the whole reference.

    Attributes:
        energy_j: Energy of the plan, joules per inference.
        reference_energy_j: Energy of the reference, metered in turns with the plan.
        provenance: Where both energies come from.
        saving: Share of the reference's energy that the plan saves.
        saving_interval: Its confidence interval; None if there is none.
        interval_level: Level of the interval.
        net_saving: The saving above the idle device's energy; None if idle power was not metered.
        additive_error: Energy ratio by the sum of the layers / energy ratio found - 1.
        trials: Trials the figures are from.
        reliable: False if many trials scattered.
    """

    energy_j: float
    reference_energy_j: float
    provenance: Provenance
    saving: float
    saving_interval: tuple[float, float] | None
    interval_level: float
    net_saving: float | None
    additive_error: float
    trials: int
    reliable: bool

    @property
    def finding(self) -> Literal["saves", "unclear", "costs"]:
        """A saving, or none, only where the interval excludes the other; otherwise ``unclear``."""
        low, high = self.saving_interval or (-math.inf, math.inf)
        return "saves" if low > 0.0 else "costs" if high <= 0.0 else "unclear"

    @property
    def text(self) -> str:
        """What a plan does, as the rest of a sentence."""
        if self.finding == "saves":
            return f"saves {format_percent(self.saving)} end to end ({self.details})"
        if self.finding == "costs":
            return f"does not save energy end to end ({self.details})"
        return f"is not shown to save energy end to end ({self.details})"

    @property
    def details(self) -> str:
        """The figures behind `text`."""
        level = f"{100 * self.interval_level:g} % interval"
        interval = format_share_interval(self.saving_interval)
        saving = f"saving {format_percent(self.saving)}, " if self.finding != "saves" else ""
        return (
            f"{saving}{level} {interval or 'unknown'}; the sum of its layers is off by "
            f"{format_error(self.additive_error)}"
        )
