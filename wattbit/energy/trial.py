"""One trial: reference, candidate, candidate, reference, once or several times over."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wattbit.energy.counter import CounterMeter
from wattbit.energy.device_sync import synchronize
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import Energy, EnergyMeter
from wattbit.energy.rejection import Rejection, RejectionRules, rejection

Work = Callable[[], object]

FINE_WINDOW_S = 0.002
"""Shortest window of a meter that may be read at any moment: about 100 times what reading it takes."""

_FINE_TRIALS = 12
_COUNTER_TRIALS = 5
_FINE_ROUNDS = 4
_FINE_TRIAL_S = 0.2
_SETTLE_SHARE = 0.25
_LONGEST_SETTLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the windows of a comparison are laid out.

    Attributes:
        repeats: Runs per window.
        settle_runs: Runs before a window that follows other work.
        rounds: Rounds of four windows in a trial.
        trials: Trials wanted.
        longest_gap_s: Longest random gap before a window, seconds.
    """

    repeats: int
    settle_runs: int
    rounds: int
    trials: int
    longest_gap_s: float


Round = tuple[Energy, Energy, Energy, Energy]
"""Four windows in order of time: reference, candidate, candidate, reference."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial's rounds, and why it is thrown away, if it is."""

    rounds: tuple[Round, ...]
    rejection: Rejection | None

    @property
    def energy_ratios(self) -> list[float]:
        """Candidate energy over reference energy, by round."""
        return [(b.energy_j + c.energy_j) / (a.energy_j + d.energy_j) for a, b, c, d in self.rounds]

    @property
    def time_ratios(self) -> list[float]:
        """Candidate time over reference time, by round."""
        return [(b.seconds + c.seconds) / (a.seconds + d.seconds) for a, b, c, d in self.rounds]

    @property
    def reference(self) -> Energy:
        """A window of the reference: the mean of all."""
        return mean_window([window for first, _, _, last in self.rounds for window in (first, last)])


def make_schedule(
    meter: EnergyMeter,
    works: Sequence[Work],
    protocol: MeasurementProtocol,
    clock: Callable[[], float] = time.perf_counter,
) -> Schedule:
    """Lay out windows for what suits the meter, or for what was asked for.

    Args:
        meter: The meter; if it reads a counter, its shortest window is kept in any case.
        works: What is to be measured; run here, to see how long it takes.
        protocol: How to measure.
        clock: Seconds on a monotonic clock.
    """
    counter = meter if isinstance(meter, CounterMeter) else None
    shortest_s = counter.min_window_s if counter else 0.0
    found = [
        repeats_to_fill(work, max(protocol.window_s or FINE_WINDOW_S, shortest_s), clock) for work in works
    ]
    repeats = max(repeats for repeats, _ in found)
    longest_run_s = max(run_s for _, run_s in found)
    settle_runs = min(math.ceil(_SETTLE_SHARE * repeats), math.ceil(_LONGEST_SETTLE_S / longest_run_s))
    rounds = 1
    if counter is None and protocol.window_s is None:
        round_s = 4 * statistics.fmean(run_s for _, run_s in found) * (repeats + settle_runs)
        rounds = max(1, min(_FINE_ROUNDS, int(_FINE_TRIAL_S / round_s)))
    return Schedule(
        repeats=repeats,
        settle_runs=settle_runs,
        rounds=rounds,
        trials=protocol.trials or (_COUNTER_TRIALS if counter else _FINE_TRIALS),
        longest_gap_s=2 * counter.refresh_s if counter else 0.0,
    )


def repeats_to_fill(work: Work, window_s: float, clock: Callable[[], float]) -> tuple[int, float]:
    """Runs that fill ``window_s``, and seconds of one; doubles until the time they take can be trusted.

    The meter is not asked: a counter that is read too soon has not moved yet.
    """
    repeats = 1
    while True:
        seconds = timed_s(work, repeats, clock)
        if seconds >= window_s / 4 and seconds < _LONGEST_SETTLE_S:
            # A single interruption must not make windows short.
            seconds = min(seconds, timed_s(work, repeats, clock), timed_s(work, repeats, clock))
        if seconds >= window_s / 4:
            return math.ceil(repeats * window_s / seconds), seconds / repeats
        repeats *= 2


def timed_s(work: Work, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds that ``repeats`` runs take, with what they leave to an accelerator."""
    synchronize()
    start = clock()
    for _ in range(repeats):
        work()
    synchronize()
    return clock() - start


class TrialRunner:
    """Runs trials of one comparison.

    Args:
        meter: The meter to read.
        reference: One run of the reference.
        candidate: One run of the candidate.
        schedule: How windows are laid out.
        rules: When a trial is thrown away.
        sleep: Waits for a time in seconds.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        reference: Work,
        candidate: Work,
        schedule: Schedule,
        rules: RejectionRules,
        sleep: Callable[[float], None],
    ) -> None:
        self.schedule = schedule
        self.rules = rules
        self._meter = meter
        self._order = (reference, candidate, candidate, reference)
        self._sleep = sleep
        self._random = random.Random(rules.seed)  # noqa: S311 - no secret

    def run(self) -> Trial:
        """Run one trial.

        Raises:
            MeterError: If the meter fails.
        """
        self._settle(self._order[0])
        rounds = tuple(self._round() for _ in range(self.schedule.rounds))
        first, second, third, fourth = (_calm_half([windows[i] for windows in rounds]) for i in range(4))
        every = [window for windows in rounds for window in windows]
        return Trial(rounds, rejection(every, ((first, fourth), (second, third)), self.rules))

    def _round(self) -> Round:
        windows = []
        for position, work in enumerate(self._order):
            if self.schedule.longest_gap_s > 0.0:
                # Windows must not march in step with the counter's refresh.
                self._sleep(self._random.uniform(0.0, self.schedule.longest_gap_s))
                self._settle(work)
            elif position in (1, 3):
                self._settle(work)
            windows.append(run_window(self._meter, work, self.schedule.repeats))
            if self.schedule.longest_gap_s == 0.0 and position in (0, 2):
                # Not needed to settle, but drift that is linear in time cancels only if what lies between
                # windows is the same before and after the middle.
                self._settle(work)
        first, second, third, fourth = windows
        return first, second, third, fourth

    def _settle(self, work: Work) -> None:
        for _ in range(self.schedule.settle_runs):
            work()


def run_window(meter: EnergyMeter, work: Work, repeats: int) -> Energy:
    """The energy of ``repeats`` runs, with what they leave to an accelerator.

    Raises:
        MeterError: If the meter fails.
    """
    synchronize()
    with meter.window() as window:
        for _ in range(repeats):
            work()
        synchronize()
    return window.result


def mean_window(windows: Sequence[Energy]) -> Energy:
    """The mean of energies and times, with the first window's provenance."""
    return replace(
        windows[0],
        energy_j=statistics.fmean(window.energy_j for window in windows),
        seconds=statistics.fmean(window.seconds for window in windows),
    )


def _calm_half(windows: Sequence[Energy]) -> Energy:
    """Mean of the half of the windows that took the least energy; of one window, itself."""
    ordered = sorted(windows, key=lambda window: window.energy_j)
    return mean_window(ordered[: math.ceil(len(windows) / 2)])
