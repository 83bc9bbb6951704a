"""Timing two things side by side on a machine that does other things too."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]
Clock = Callable[[], float]
Wait = Callable[[], None]
"""Returns when what was started is done; accelerators work on after a call has returned."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A candidate timed against a reference.

    Attributes:
        speedup: Median over trials of reference time / candidate time.
        spread: Half the distance between the quartiles of the trials' speed-ups, relative to ``speedup``.
        reference_s: Median time of one run of the reference.
        candidate_s: ``reference_s / speedup``.
        trials: Number of trials.
        repeats: Runs that are timed together.
    """

    speedup: float
    spread: float
    reference_s: float
    candidate_s: float
    trials: int
    repeats: int


def compare_times(
    reference: Work,
    candidate: Work,
    *,
    window_s: float = 0.02,
    trials: int = 15,
    clock: Clock = time.perf_counter,
    wait: Wait = lambda: None,
) -> Timing:
    """Time ``candidate`` against ``reference``.

    Each trial runs reference, candidate, candidate, reference, which cancels any drift that is linear in
    time, and yields one ratio. Medians are not moved by the trials in which another process took the core.

    Args:
        reference: One run of the reference.
        candidate: One run of the candidate.
        window_s: How long the runs that are timed together take at the least, seconds.
        trials: Number of trials, at least 2.
        clock: Seconds on a monotonic clock.
        wait: Waits for what the runs have started.
    """
    reference(), candidate()
    repeats = max(_repeats(work, window_s, clock, wait) for work in (reference, candidate))
    speedups, reference_s = [], []
    for _ in range(trials):
        first, second, third, fourth = (
            _seconds(work, repeats, clock, wait) for work in (reference, candidate, candidate, reference)
        )
        speedups.append((first + fourth) / (second + third))
        reference_s.append((first + fourth) / (2 * repeats))
    speedup, base_s = statistics.median(speedups), statistics.median(reference_s)
    low, _, high = statistics.quantiles(speedups, n=4)
    return Timing(speedup, (high - low) / 2 / speedup, base_s, base_s / speedup, trials, repeats)


def best_s(
    work: Work,
    *,
    window_s: float = 0.02,
    trials: int = 15,
    clock: Clock = time.perf_counter,
    wait: Wait = lambda: None,
) -> float:
    """The shortest time of one run: what the machine can do when nobody disturbs it, seconds."""
    work()
    repeats = _repeats(work, window_s, clock, wait)
    return min(_seconds(work, repeats, clock, wait) for _ in range(trials)) / repeats


def _seconds(work: Work, repeats: int, clock: Clock, wait: Wait) -> float:
    wait()
    start = clock()
    for _ in range(repeats):
        work()
    wait()
    return clock() - start


def _repeats(work: Work, window_s: float, clock: Clock, wait: Wait) -> int:
    """Runs that fill ``window_s``; doubles until the time they take can be trusted."""
    repeats = 1
    while True:
        seconds = _seconds(work, repeats, clock, wait)
        if seconds >= window_s / 4:
            return math.ceil(repeats * window_s / seconds)
        repeats *= 2
