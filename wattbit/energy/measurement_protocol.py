"""How a meter measures, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from wattbit.energy.rejection import RejectionRules
from wattbit.errors import MeterError


@dataclass(frozen=True, slots=True)
class MeasurementProtocol:
    """The settings of every comparison that a meter makes.

    Attributes:
        window_s: Shortest window, seconds; runs are repeated to fill it. None for what suits the meter. A
            counter's own shortest window is kept in any case.
        trials: Trials of reference, candidate, candidate, reference, at least 2; None for what suits.
        idle_s: Time a counter measures the idle device first, for figures above idle, seconds; 0 skips it.
        rules: When a trial is thrown away.

    Raises:
        MeterError: If there are fewer than 2 trials, or no window is that long.
    """

    window_s: float | None = None
    trials: int | None = None
    idle_s: float = 0.0
    rules: RejectionRules = field(default_factory=RejectionRules)

    def __post_init__(self) -> None:
        if self.window_s is not None and not 0.0 < self.window_s < math.inf:
            raise MeterError(
                f"window of {self.window_s} s cannot be filled, must be above 0 and finite; 5 s suits NVML"
            )
        if self.trials is not None and self.trials < 2:
            raise MeterError(
                f"{self.trials} trials give no spread, needs at least 2; raise energy.protocol.trials"
            )


DEFAULT_PROTOCOL = MeasurementProtocol()
"""What suits the meter, by the usual rules."""
