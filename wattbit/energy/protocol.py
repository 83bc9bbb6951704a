"""How to measure: interleaved, repeated, as a ratio.

Machines drift (clocks, heat, neighbours), so a candidate is never measured alone. Each round runs reference,
candidate, candidate, reference (ABBA), which cancels any drift that is linear in time, and yields one ratio.
The median over trials is quoted and their spread kept. Several comparisons take turns, one trial each, so
that a disturbance of seconds falls on all of them and decides none.

A meter that may be read at any moment gets many short windows, several rounds a trial. What disturbs a run
(an interrupt, a neighbour's use of a shared cache) only ever adds to it, so the calmest tenth counts,
on both sides.

Work is run a while before a window opens on it, so that no window begins with the caches and clock rates that
other work left behind. Windows of a counter that refreshes slowly begin at random moments. A trial in which
the device was hot, throttled or shared, or whose windows disagree, is thrown away and tried again.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence

from wattbit.energy.counter import CounterMeter
from wattbit.energy.device_lock import exclusive_use
from wattbit.energy.energy_comparison import Confirmation, EnergyComparison
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.rejection import RejectionRules
from wattbit.energy.trial import TrialRunner, Work, make_schedule
from wattbit.energy.trial_series import TrialSeries
from wattbit.errors import MeterError

__all__ = [
    "Confirmation",
    "EnergyComparison",
    "RejectionRules",
    "Work",
    "compare",
    "compare_all",
    "confirm_plan",
    "measure_idle_w",
    "metering_overhead_s",
]


def compare(
    meter: EnergyMeter,
    reference: Work,
    candidate: Work,
    *,
    window_s: float | None = None,
    trials: int | None = None,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    rules: RejectionRules | None = None,
    idle_w: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyComparison:
    """Measure ``candidate`` against ``reference`` in ABBA order, while no other measurement runs.

    Args:
        meter: The meter to read.
        reference: One run of the reference.
        candidate: One run of the candidate.
        window_s: As for `compare_all`.
        trials: As for `compare_all`.
        warmup: As for `compare_all`.
        clock: As for `compare_all`.
        rules: As for `compare_all`.
        idle_w: As for `compare_all`.
        sleep: As for `compare_all`.

    Raises:
        MeterError: As `compare_all` does.
    """
    (found,) = compare_all(
        meter,
        [(reference, candidate)],
        window_s=window_s,
        trials=trials,
        warmup=warmup,
        clock=clock,
        rules=rules,
        idle_w=idle_w,
        sleep=sleep,
    )
    return found


def compare_all(
    meter: EnergyMeter,
    pairs: Sequence[tuple[Work, Work]],
    *,
    window_s: float | None = None,
    trials: int | None = None,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    rules: RejectionRules | None = None,
    idle_w: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[EnergyComparison]:
    """Measure several pairs of (reference, candidate), taking turns, while no other measurement runs.

    Args:
        meter: The meter to read.
        pairs: One run of each reference and of each candidate.
        window_s: Shortest window; runs are repeated to fill it. None for what suits the meter; a counter's
            own shortest window is kept in any case.
        trials: Number of trials, at least 2; None for what suits the meter.
        warmup: Runs of each before anything is measured.
        clock: Seconds on a monotonic clock, to find how many runs fill a window.
        rules: When a trial is thrown away; None for the defaults.
        idle_w: Power of the idle device (`measure_idle_w`), watts, for the figures above idle.
        sleep: Waits for a time in seconds.

    Raises:
        MeterError: If the meter fails, there are fewer than 2 trials, no window is that long, or the device
            was not left alone (heat, throttling, other processes).
    """
    rules = rules or RejectionRules()
    if window_s is not None and not 0.0 < window_s < math.inf:
        raise MeterError(
            f"window of {window_s} s cannot be filled, must be above 0 and finite; 5 s suits NVML"
        )
    if trials is not None and trials < 2:
        raise MeterError(f"{trials} trials give no spread, needs at least 2; raise energy.trials")
    keys = meter.lock_keys if isinstance(meter, CounterMeter) else (meter.device,)
    with exclusive_use(keys):
        series = []
        for reference, candidate in pairs:
            for work in (reference, candidate):
                for _ in range(warmup):
                    work()
            schedule = make_schedule(meter, (reference, candidate), window_s, trials, clock)
            runner = TrialRunner(meter, reference, candidate, schedule, rules, sleep)
            series.append(TrialSeries(runner, meter.device))
        while unfinished := [one for one in series if not one.finished]:
            for one in unfinished:
                one.run_trial()
    return [one.result(idle_w) for one in series]


def measure_idle_w(
    meter: EnergyMeter, seconds: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> float:
    """Power of the device while this process does nothing, watts.

    Args:
        meter: The meter; one that bills CPU time has no idle power, and refuses.
        seconds: Length of the window; a counter's own shortest window is kept in any case.
        sleep: Waits for a time in seconds.

    Raises:
        MeterError: If the meter fails.
    """
    length_s = max(seconds, meter.min_window_s) if isinstance(meter, CounterMeter) else seconds
    with meter.window() as window:
        sleep(length_s)
    return window.result.energy_j / window.result.seconds


def confirm_plan(
    meter: EnergyMeter,
    reference: Work,
    planned: Work,
    predicted_ratio: float,
    *,
    window_s: float | None = None,
    trials: int | None = None,
    rules: RejectionRules | None = None,
) -> Confirmation:
    """Measure a whole model under a plan against the whole model at the reference.

    Energies of layers do not add up exactly: caches, clock rates and conversions depend on the neighbours.

    Args:
        meter: The meter to read.
        reference: One run of the model at the reference plan.
        planned: One run of the model under the plan.
        predicted_ratio: The additive model's ratio of the two energies.
        window_s: As for `compare`.
        trials: As for `compare`.
        rules: As for `compare`.

    Raises:
        MeterError: As `compare` does.
    """
    found = compare(meter, reference, planned, window_s=window_s, trials=trials, rules=rules)
    return Confirmation(found, predicted_ratio)


def metering_overhead_s(
    meter: EnergyMeter, windows: int = 101, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time to open and close a window in which nothing happens, seconds.

    More than metering can add to a window: much of it happens before the window's first reading and after its
    last. Over the length of the windows that are used it is the share that metering may be blamed for.

    Args:
        meter: The meter.
        windows: Number of windows.
        clock: Seconds on a monotonic clock.
    """
    taken_s = []
    for _ in range(windows):
        start = clock()
        # A counter refuses a window in which it could not move, once it has done its readings.
        with contextlib.suppress(MeterError), meter.window():
            pass
        taken_s.append(clock() - start)
    return statistics.median(taken_s)
