"""Timing two things side by side on a machine that does other things too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from wattbit.energy.trial import Work, repeats_to_fill, timed_s


@dataclass(frozen=True, slots=True)
class Timing:
    """A candidate timed against a reference.

    Attributes:
        speedup: Median over trials of reference time / candidate time.
        spread: Half the distance between the quartiles of the trials' speed-ups, relative to ``speedup``.
        reference_s: Median time of one run of the reference.
        candidate_s: ``reference_s / speedup``.
    """

    speedup: float
    spread: float
    reference_s: float
    candidate_s: float


def compare_times(
    reference: Work,
    candidate: Work,
    *,
    window_s: float = 0.02,
    trials: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``candidate`` against ``reference``.

    Each trial runs reference, candidate, candidate, reference, which cancels any drift that is linear in
    time, and yields one ratio. Medians are not moved by the trials in which another process took the core.

    Args:
        reference: One run of the reference.
        candidate: One run of the candidate.
        window_s: The least time that runs timed together take, seconds.
        trials: Number of trials, at least 2.
        clock: Seconds on a monotonic clock.
    """
    reference(), candidate()
    repeats = max(repeats_to_fill(work, window_s, clock)[0] for work in (reference, candidate))
    speedups, reference_s = [], []
    for _ in range(trials):
        first, second, third, fourth = (
            timed_s(work, repeats, clock) for work in (reference, candidate, candidate, reference)
        )
        speedups.append((first + fourth) / (second + third))
        reference_s.append((first + fourth) / (2 * repeats))
    speedup, base_s = statistics.median(speedups), statistics.median(reference_s)
    low, _, high = statistics.quantiles(speedups, n=4)
    return Timing(speedup, (high - low) / 2 / speedup, base_s, base_s / speedup)


def best_s(
    work: Work,
    *,
    window_s: float = 0.02,
    trials: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The shortest time of one run, seconds: what the undisturbed machine can do."""
    work()
    repeats, _ = repeats_to_fill(work, window_s, clock)
    return min(timed_s(work, repeats, clock) for _ in range(trials)) / repeats
