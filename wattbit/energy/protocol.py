"""How to measure: interleaved, repeated, as a ratio.

Machines drift (clocks, heat, neighbours), so a candidate is never measured alone. Each trial runs reference,
candidate, candidate, reference (ABBA), which cancels any drift that is linear in time, and yields one ratio;
the median over trials is quoted and its spread kept.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from wattbit.energy.meter import Energy, EnergyMeter
from wattbit.errors import MeterError

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate measured against a reference.

    Attributes:
        energy_ratio: Median over trials of candidate energy / reference energy.
        energy_rel_std: Relative standard deviation of the trials' ratios.
        reference_j: Median energy of one run of the reference, joules.
        candidate_j: ``energy_ratio * reference_j``.
        reference_s: Median time of one run of the reference, seconds.
        candidate_s: Median time ratio times ``reference_s``, seconds.
        trials: Number of ABBA trials.
        repeats: Runs per window.
    """

    energy_ratio: float
    energy_rel_std: float
    reference_j: float
    candidate_j: float
    reference_s: float
    candidate_s: float
    trials: int
    repeats: int


def compare(
    meter: EnergyMeter,
    reference: Work,
    candidate: Work,
    *,
    window_s: float,
    trials: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Measure ``candidate`` against ``reference`` in ABBA order.

    Args:
        meter: The meter to read.
        reference: One run of the reference.
        candidate: One run of the candidate.
        window_s: Shortest window; runs are repeated to fill it.
        trials: Number of ABBA trials, at least 2.
        warmup: Runs of each before anything is measured.
        clock: Seconds on a monotonic clock, to find how many runs fill a window.

    Raises:
        MeterError: If the meter fails, there are fewer than 2 trials, or no window is that long.
    """
    if not 0.0 < window_s < math.inf:
        raise MeterError(
            f"window of {window_s} s cannot be filled, must be above 0 and finite; 5 s suits NVML"
        )
    if trials < 2:
        raise MeterError(f"{trials} trials give no spread, needs at least 2; raise energy.trials")
    for work in (reference, candidate):
        for _ in range(warmup):
            work()
    repeats = max(_repeats(work, window_s, clock) for work in (reference, candidate))
    energy_ratios, time_ratios, reference_j, reference_s = [], [], [], []
    for _ in range(trials):
        first, second, third, fourth = (
            _measure(meter, work, repeats) for work in (reference, candidate, candidate, reference)
        )
        base_j, base_s = first.energy_j + fourth.energy_j, first.seconds + fourth.seconds
        energy_ratios.append((second.energy_j + third.energy_j) / base_j)
        time_ratios.append((second.seconds + third.seconds) / base_s)
        reference_j.append(base_j / (2 * repeats))
        reference_s.append(base_s / (2 * repeats))
    ratio = statistics.median(energy_ratios)
    base_j, base_s = statistics.median(reference_j), statistics.median(reference_s)
    return Comparison(
        energy_ratio=ratio,
        energy_rel_std=statistics.stdev(energy_ratios) / ratio,
        reference_j=base_j,
        candidate_j=ratio * base_j,
        reference_s=base_s,
        candidate_s=statistics.median(time_ratios) * base_s,
        trials=trials,
        repeats=repeats,
    )


def _measure(meter: EnergyMeter, work: Work, repeats: int) -> Energy:
    with meter.window() as window:
        for _ in range(repeats):
            work()
    return window.result


def _repeats(work: Work, window_s: float, clock: Callable[[], float]) -> int:
    """Runs that fill ``window_s``; doubles until the time they take can be trusted.

    The meter is not asked: a counter that is read too soon has not moved yet.
    """
    repeats = 1
    while True:
        start = clock()
        for _ in range(repeats):
            work()
        seconds = clock() - start
        if seconds >= window_s / 4:
            return math.ceil(repeats * window_s / seconds)
        repeats *= 2
