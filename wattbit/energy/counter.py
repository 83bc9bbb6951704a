"""What meters that read a hardware counter share: windows that measure once and alone, on checked clocks."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, TypeVar, runtime_checkable

from wattbit.energy.device_lock import exclusive_use
from wattbit.energy.meter import Energy, EnergyMeter
from wattbit.errors import MeterError
from wattbit.profile import Provenance

R = TypeVar("R")

_NS_PER_S = 1e9
_CLOCKS_AGREE_REL = 0.01
_CLOCKS_AGREE_S = 0.01


@runtime_checkable
class CounterMeter(EnergyMeter, Protocol):
    """An `EnergyMeter` whose counter needs time: windows of some length, taken at random moments."""

    @property
    def refresh_s(self) -> float:
        """How often the counter moves, seconds."""

    @property
    def min_window_s(self) -> float:
        """The shortest window to be trusted, seconds."""

    @property
    def lock_keys(self) -> tuple[str, ...]:
        """Names of what only one measurement may use at a time."""

    def covers(self, device: str) -> bool:
        """True if work on ``device`` (as torch names it: ``cpu``, ``cuda:1``) is in its figures."""


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on two clocks, nanoseconds: one may stop while the machine sleeps, the other does not."""

    clock_ns: int
    cross_ns: int


@dataclass(frozen=True, slots=True)
class Clocks:
    """A monotonic clock, and another one to check it against.

    Attributes:
        clock_ns: Reads the clock that windows are timed with, nanoseconds.
        cross_ns: Reads the clock it is checked against, nanoseconds.
    """

    clock_ns: Callable[[], int] = time.perf_counter_ns
    cross_ns: Callable[[], int] = (
        (lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)) if sys.platform == "linux" else time.monotonic_ns
    )

    def now(self) -> Instant:
        """This moment."""
        return Instant(self.clock_ns(), self.cross_ns())

    def seconds(self, start: Instant, end: Instant) -> float:
        """The time from ``start`` to ``end``, seconds.

        Raises:
            MeterError: If a clock stood still or went back, or the two disagree: one jumped, or the machine
                slept.
        """
        passed = (end.clock_ns - start.clock_ns) / _NS_PER_S
        crossed = (end.cross_ns - start.cross_ns) / _NS_PER_S
        if passed < 0 or crossed < 0:
            raise MeterError(
                f"the clock went back by {-min(passed, crossed):g} s in the window; measure it again"
            )
        if passed == 0:
            raise MeterError(
                "0 s on the clock: window shorter than its resolution; repeat the work more often"
            )
        if abs(passed - crossed) > _CLOCKS_AGREE_S + _CLOCKS_AGREE_REL * max(passed, crossed):
            raise MeterError(
                f"one clock counted {passed:.3g} s in the window, another {crossed:.3g} s: a clock jumped or "
                "the machine slept; measure it again"
            )
        return passed


class HardwareCounter:
    """What meters of hardware counters share.

    Args:
        clocks: What windows are timed with; None for the machine's own.
        positive: Arguments that must be above 0 and finite, by name; ``min_window_s`` is one of them.

    Attributes:
        provenance: Always ``measured``.
        refresh_s: How often the counter moves, seconds.
        min_window_s: The shortest window to be trusted, seconds.

    Raises:
        MeterError: If an argument is not above 0 and finite.
    """

    provenance: Provenance = "measured"
    refresh_s: float

    def __init__(self, clocks: Clocks | None, *, min_window_s: float, **positive: float) -> None:
        for name, value in {"min_window_s": min_window_s, **positive}.items():
            if not 0 < value < math.inf:
                raise MeterError(f"{name} is {value!r}, must be above 0 and finite; leave it out")
        self.min_window_s = min_window_s
        self._clocks = clocks or Clocks()


class CounterWindow(Generic[R]):
    """A window of a meter that reads counters; it measures once, while no other measurement runs.

    Args:
        lock_keys: Names of what only one measurement may use at a time.
        begin: Reads the counters at the beginning.
        end: Reads them again and turns what passed into energy.
        abandon: Lets go of what ``begin`` started if the work in the window raised.
    """

    __slots__ = (
        "_abandon",
        "_begin",
        "_end",
        "_energy",
        "_lock",
        "_lock_keys",
        "_opened",
        "_problem",
        "_start",
    )

    def __init__(
        self,
        lock_keys: Sequence[str],
        begin: Callable[[], R],
        end: Callable[[R], Energy],
        abandon: Callable[[R], None] = lambda start: None,
    ) -> None:
        self._lock_keys = lock_keys
        self._begin = begin
        self._end = end
        self._abandon = abandon
        self._opened = False
        self._problem = "the window has not closed yet; read its result after the with block"
        self._energy: Energy | None = None

    def __enter__(self) -> CounterWindow[R]:
        if self._opened:
            raise MeterError("this window was opened before; open another with meter.window()")
        self._opened = True
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive_use(self._lock_keys))
            self._start = self._begin()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if kind is not None:
                self._problem = (
                    f"the work in the window raised {kind.__name__}; there is no energy for half a run"
                )
                self._abandon(self._start)
                return
            try:
                self._energy = self._end(self._start)
            except MeterError as refusal:
                self._problem = str(refusal)
                raise

    @property
    def result(self) -> Energy:
        """The energy spent between entry and exit.

        Raises:
            MeterError: Before exit, if the work raised, or if the meter failed.
        """
        if self._energy is None:
            raise MeterError(self._problem)
        return self._energy


def require_plausible(energy_j: float, seconds: float, least_w: float, most_w: float, what: str) -> None:
    """Refuse energy that no device can spend: a counter or a clock jumped.

    Raises:
        MeterError: If the mean power is not from ``least_w`` to ``most_w``.
    """
    watts = energy_j / seconds
    if not least_w <= watts <= most_w:
        raise MeterError(
            f"{what}: {watts:.4g} W over {seconds:.3g} s, {least_w:g} to {most_w:g} W are plausible: "
            "a counter or a clock jumped; measure it again"
        )
