"""How to measure: interleaved, repeated, as a ratio.

Machines drift (clocks, heat, neighbours), so a candidate is never measured alone. Each round runs reference,
candidate, candidate, reference (ABBA), which cancels any drift that is linear in time. A trial is one round,
or, where the meter allows short windows, several, of which each position's calmer half counts. A trial yields
one ratio; the median over trials is quoted and its spread kept.

Work is run a while before a window opens on it, so that no window begins with the caches and clock rates that
other work left behind. Windows of a counter that refreshes slowly begin at random moments. A trial in which
the device was hot, throttled or shared, or whose windows disagree, is thrown away and tried again.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

from wattbit.energy.comparison import Comparison, Confirmation
from wattbit.energy.counter import CounterMeter
from wattbit.energy.exclusive import exclusive_use
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.ratio_interval import ratio_interval
from wattbit.energy.rejection import Rules
from wattbit.energy.trial import Schedule, Trial, TrialRunner, Work, make_schedule
from wattbit.errors import MeterError

__all__ = [
    "Comparison",
    "Confirmation",
    "Rules",
    "Work",
    "compare",
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
    rules: Rules | None = None,
    idle_w: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Comparison:
    """Measure ``candidate`` against ``reference`` in ABBA order, while no other measurement runs.

    Args:
        meter: The meter to read.
        reference: One run of the reference.
        candidate: One run of the candidate.
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
    rules = rules or Rules()
    if window_s is not None and not 0.0 < window_s < math.inf:
        raise MeterError(
            f"window of {window_s} s cannot be filled, must be above 0 and finite; 5 s suits NVML"
        )
    if trials is not None and trials < 2:
        raise MeterError(f"{trials} trials give no spread, needs at least 2; raise energy.trials")
    keys = meter.lock_keys if isinstance(meter, CounterMeter) else (meter.device,)
    with exclusive_use(keys):
        for work in (reference, candidate):
            for _ in range(warmup):
                work()
        schedule = make_schedule(meter, (reference, candidate), window_s, trials, clock)
        runner = TrialRunner(meter, reference, candidate, schedule, rules, sleep)
        good, noisy, tried = _run_trials(meter, runner, schedule.trials, rules)
    return _summary(good, noisy, tried, schedule, rules, idle_w)


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
    rules: Rules | None = None,
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


def _run_trials(
    meter: EnergyMeter, runner: TrialRunner, wanted: int, rules: Rules
) -> tuple[list[Trial], list[Trial], int]:
    """Good trials, those that only scatter, and how many were run, until enough are good or it is given up.

    Raises:
        MeterError: If too few are left without those whose figures are wrong.
    """
    good: list[Trial] = []
    noisy: list[Trial] = []
    causes: Counter[str] = Counter()
    limit = wanted * rules.attempts
    for tried in range(1, limit + 1):
        trial = runner.run()
        if trial.rejection is None:
            good.append(trial)
        else:
            causes[trial.rejection.cause] += 1
            if trial.rejection.noise:
                noisy.append(trial)
        if len(good) == wanted:
            return good, noisy, tried
    if len(good) + len(noisy) < wanted:
        ((cause, times),) = causes.most_common(1)
        raise MeterError(
            f"{meter.device}: {limit - len(good)} of {limit} trials were rejected, {times} of them because: "
            f"{cause}; leave the device to this process alone and let it cool, or choose energy=modelled"
        )
    return good, noisy, limit


def _summary(
    good: Sequence[Trial],
    noisy: Sequence[Trial],
    tried: int,
    schedule: Schedule,
    rules: Rules,
    idle_w: float | None,
) -> Comparison:
    reliable = len(good) >= schedule.trials
    used = good if reliable else [*good, *noisy]
    ratios = [trial.energy_ratio for trial in used]
    references_j = [trial.reference_j / schedule.repeats for trial in used]
    ratio, reference_j = statistics.median(ratios), statistics.median(references_j)
    reference_s = statistics.median(trial.reference_s for trial in used) / schedule.repeats
    low, high = ratio_interval(ratios, rules.confidence)
    return Comparison(
        energy_ratio=ratio,
        energy_rel_std=statistics.stdev(ratios) / ratio,
        reference_j=reference_j,
        candidate_j=ratio * reference_j,
        reference_s=reference_s,
        candidate_s=statistics.median(trial.time_ratio for trial in used) * reference_s,
        trials=len(used),
        repeats=schedule.repeats,
        ratio_low=low,
        ratio_high=high,
        reference_rel_std=statistics.stdev(references_j) / reference_j,
        rejected=tried - len(used),
        reliable=reliable,
        idle_w=idle_w,
    )
