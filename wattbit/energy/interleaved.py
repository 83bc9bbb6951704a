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

import time
from collections.abc import Callable, Sequence

from wattbit.energy.counter import CounterMeter
from wattbit.energy.device_lock import exclusive_use
from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.measurement_protocol import DEFAULT_PROTOCOL, MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.trial import TrialRunner, Work, make_schedule
from wattbit.energy.trial_series import TrialSeries

_WARM_UP = 2
"""Runs of each work before anything is measured."""


def compare(
    meter: EnergyMeter,
    reference: Work,
    candidate: Work,
    protocol: MeasurementProtocol = DEFAULT_PROTOCOL,
    *,
    idle_w: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyComparison:
    """`compare_all` of one pair."""
    pairs = [(reference, candidate)]
    (found,) = compare_all(meter, pairs, protocol, idle_w=idle_w, clock=clock, sleep=sleep)
    return found


def compare_all(
    meter: EnergyMeter,
    pairs: Sequence[tuple[Work, Work]],
    protocol: MeasurementProtocol = DEFAULT_PROTOCOL,
    *,
    idle_w: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[EnergyComparison]:
    """Measure several pairs of (reference, candidate), taking turns, while no other measurement runs.

    Args:
        meter: The meter to read.
        pairs: One run of each reference and of each candidate.
        protocol: How to measure.
        idle_w: Power of the idle device (`measure_idle_w`), watts, for the figures above idle.
        clock: Seconds on a monotonic clock, to find how many runs fill a window.
        sleep: Waits for a time in seconds.

    Raises:
        MeterError: If the meter fails, or the device was not left alone (heat, throttling, other processes).
    """
    keys = meter.lock_keys if isinstance(meter, CounterMeter) else (meter.device,)
    with exclusive_use(keys):
        series = []
        for reference, candidate in pairs:
            for work in (reference, candidate):
                for _ in range(_WARM_UP):
                    work()
            schedule = make_schedule(meter, (reference, candidate), protocol, clock)
            runner = TrialRunner(meter, reference, candidate, schedule, protocol.rules, sleep)
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
