"""When a trial is thrown away: what a measurement must not be taken in, and how much it may scatter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wattbit.energy.meter import Energy
from wattbit.errors import ConfigError

_CLOCK_FACTOR = 2.0
"""Windows of the same work may differ in length, but not by this: then a clock jumped, or the work hung."""


@dataclass(frozen=True, slots=True)
class RejectionRules:
    """What a trial must satisfy, and how often it is tried.

    Attributes:
        max_cv: Largest coefficient of variation between windows of the same work in one trial; also how
            certain a ratio from trials that scatter must be to count as reliable.
        max_drift_c: Largest change of temperature in one trial, degrees Celsius.
        max_foreign_share: Largest share of the CPU's busy time that other processes may have.
        attempts: Trials tried for each one wanted, before what scattered is taken as it is.
        confidence: Level of the ratio's interval.
        seed: Of the random gaps between windows.

    Raises:
        ConfigError: If a value makes no sense.
    """

    max_cv: float = 0.03
    max_drift_c: float = 5.0
    max_foreign_share: float = 0.05
    attempts: int = 2
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_cv", "max_drift_c", "max_foreign_share"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ConfigError(f"energy rule {name} is {value!r}, must be above 0 and finite")
        if self.attempts < 1:
            raise ConfigError(f"energy rule attempts is {self.attempts!r}, must be at least 1")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(f"energy rule confidence is {self.confidence!r}, must be above 0 and below 1")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a trial was thrown away.

    Attributes:
        cause: In a few words.
        noise: True if the figures scatter but are not known to be wrong: better than none, if flagged.
    """

    cause: str
    noise: bool


def rejection(
    windows: Sequence[Energy], pairs: Iterable[tuple[Energy, Energy]], rules: RejectionRules
) -> Rejection | None:
    """Why a trial of these windows is thrown away, or None if it is good.

    Args:
        windows: All windows of the trial, in order of time.
        pairs: Windows of the same work, which should agree.
        rules: The limits.
    """
    wrong = (
        _foreign_process(windows)
        or _foreign_load(windows, rules.max_foreign_share)
        or _throttled(windows)
        or _drifted(windows, rules.max_drift_c)
    )
    if wrong:
        return Rejection(wrong, noise=False)
    scattered = _scattered(pairs, rules.max_cv)
    return Rejection(scattered, noise=True) if scattered else None


def cv_of_pair(first: float, second: float) -> float:
    """Standard deviation of two values over their mean."""
    return math.sqrt(2.0) * abs(first - second) / (first + second)


def _foreign_process(windows: Sequence[Energy]) -> str:
    most = max(_numbers(windows, "foreign_processes"), default=0.0)
    return f"{most:g} foreign processes on the device" if most > 0 else ""


def _foreign_load(windows: Sequence[Energy], limit: float) -> str:
    most = max(_numbers(windows, "foreign_cpu_share"), default=0.0)
    # No numbers in the cause: it is counted over trials.
    return f"more than {limit:.0%} of the CPU's work was other processes'" if most > limit else ""


def _throttled(windows: Sequence[Energy]) -> str:
    reasons = [str(window.detail["throttle"]) for window in windows if window.detail.get("throttle")]
    return f"throttled ({reasons[0]})" if reasons else ""


def _drifted(windows: Sequence[Energy], limit_c: float) -> str:
    both = [*_numbers(windows, "temperature_begin_c"), *_numbers(windows, "temperature_end_c")]
    return (
        f"temperature moved by more than {limit_c:g} °C" if both and max(both) - min(both) > limit_c else ""
    )


def _scattered(pairs: Iterable[tuple[Energy, Energy]], max_cv: float) -> str:
    for first, second in pairs:
        if max(first.seconds, second.seconds) > _CLOCK_FACTOR * min(first.seconds, second.seconds):
            return f"windows of the same work differ by more than {_CLOCK_FACTOR:g} times in length"
        if cv_of_pair(first.energy_j, second.energy_j) > max_cv:
            return f"windows of the same work differ by a CV above {max_cv:.1%}"
    return ""


def _numbers(windows: Sequence[Energy], key: str) -> list[float]:
    return [float(value) for window in windows if isinstance(value := window.detail.get(key), int | float)]
