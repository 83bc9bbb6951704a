"""Joules and time of several works side by side; time alone where joules cannot be read.

A rotation runs every work once in order and once in reverse: reference, a, b, b, a, reference. Like ABBA,
which it is for one candidate, it cancels drift that is linear in time, and all candidates share the
reference's windows, so that a report of minutes can hold them. `wattbit.energy.interleaved.compare` is the
ABBA of profiles.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.benchmarks.timing import best_s
from scripts.gpu.machine import Machine
from wattbit.energy.meter import Energy
from wattbit.energy.ratio_interval import ratio_interval
from wattbit.energy.rejection import RejectionRules, rejection
from wattbit.energy.trial import Work, run_window, timed_s
from wattbit.errors import MeterError, one_line

Facts = dict[str, Any]

_FAILURES_BEFORE_GIVING_UP = 3
_TIMING_WINDOW_S = 0.1
_SETTLE_SHARE = 0.1
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class _Window:
    """One window: how many runs, how long they took, and their energy where it was read."""

    runs: int
    seconds: float
    spent: Energy | None

    @property
    def run_s(self) -> float:
        return self.seconds / self.runs

    @property
    def run_j(self) -> float:
        """Joules of one run; NaN where they were not read, never 0."""
        return math.nan if self.spent is None else self.spent.energy_j / self.runs


_Pairs = Sequence[tuple[_Window, _Window]]
"""Both windows of one work in each trial."""


class GpuMeasurer:
    """Measures on one machine.

    A meter that refuses several rotations is asked no more, so that the time goes into what can be had. Every
    row says what its figures are.

    Args:
        machine: What is measured on.
        window_s: Length of a window for energy, seconds.
        trials: Rotations, at least 2.
        idle_w: Power of the idle device, watts; None if not known.
        sleep: Waits for a time in seconds.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        window_s: float,
        trials: int,
        idle_w: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._machine = machine
        self._window_s = window_s
        self._trials = trials
        self._idle_w = idle_w
        self._sleep = sleep
        self._clock = clock
        self._random = random.Random(0)  # noqa: S311 - no secret
        self._failures = 0

    def rotate(self, works: Mapping[str, Work], left_s: float) -> dict[str, Facts]:
        """What one run of each of ``works`` takes, and its ratios to the first, the reference.

        Args:
            works: One run of each, by name.
            left_s: Seconds that there are.

        Returns:
            A row for each name; that of a work that raises holds its error. Times come with every row,
            energies where there is a meter and time for it, else the reason why not.
        """
        rows: dict[str, Facts] = {}
        single_s: dict[str, float] = {}
        for name, work in works.items():
            try:
                single_s[name] = best_s(work, window_s=0.02, trials=2, clock=self._clock)
            except Exception as error:  # one format that breaks must not lose the others
                rows[name] = {"error": one_line(error)}
        sound = {name: works[name] for name in single_s}
        if sound:
            rows |= self._measured(sound, single_s, left_s)
        return {name: rows[name] for name in works}

    def _measured(
        self, works: Mapping[str, Work], single_s: Mapping[str, float], left_s: float
    ) -> dict[str, Facts]:
        facts: Facts
        problem = self._why_no_energy(len(works), left_s)
        if not problem:
            try:
                windows = self._windows(works, single_s, self._window_s, energy=True)
            except MeterError as error:
                self._failures += 1
                problem = one_line(error)
            else:
                self._failures = 0
                facts = {"provenance": self._machine.provenance, "window_s": self._window_s}
                facts["cautions"] = _cautions(windows)
        if problem:
            windows = self._windows(works, single_s, _TIMING_WINDOW_S, energy=False)
            facts = {"provenance": "time only", "energy_problem": problem, "window_s": _TIMING_WINDOW_S}
        reference = windows[next(iter(works))]
        return {
            name: {**_summary(own, reference, self._idle_w), **facts, "trials": self._trials}
            for name, own in windows.items()
        }

    def _why_no_energy(self, works: int, left_s: float) -> str:
        if self._machine.meter is None:
            return self._machine.meter_problem or "there is no meter"
        if self._failures >= _FAILURES_BEFORE_GIVING_UP:
            return f"the meter failed {self._failures} times in a row"
        gap_s = 2 * self._gap_s
        needs_s = 2 * self._trials * works * ((1 + _SETTLE_SHARE) * self._window_s + gap_s)
        if needs_s > left_s:
            return f"energy needs {needs_s:.0f} s, {max(0.0, left_s):.0f} are left"
        return ""

    @property
    def _gap_s(self) -> float:
        return float(getattr(self._machine.meter, "refresh_s", 0.0))

    def _windows(
        self, works: Mapping[str, Work], single_s: Mapping[str, float], window_s: float, *, energy: bool
    ) -> dict[str, _Pairs]:
        found: dict[str, list[_Window]] = {name: [] for name in works}
        for _ in range(self._trials):
            for name in (*works, *reversed(list(works))):
                # Works of equal length get equally many runs, whatever the last digit of their time.
                runs = math.ceil(window_s / single_s[name] - 1e-6)
                found[name].append(self._window(works[name], runs, energy))
        return {name: list(zip(each[::2], each[1::2], strict=True)) for name, each in found.items()}

    def _window(self, work: Work, runs: int, energy: bool) -> _Window:
        meter = self._machine.meter
        # Clocks and caches settle before the window opens.
        for _ in range(math.ceil(_SETTLE_SHARE * runs)):
            work()
        if meter is None or not energy:
            return _Window(runs, timed_s(work, runs, self._clock), None)
        # A random gap, so that windows do not march in step with the counter's refresh.
        self._sleep(self._random.uniform(0.0, 2 * self._gap_s))
        spent = run_window(meter, work, runs)
        return _Window(runs, spent.seconds, spent)


def _cautions(windows: Mapping[str, _Pairs]) -> list[str]:
    """Why the protocol of profiles would throw trials away; a report of minutes keeps them, and says so."""
    causes = []
    for trial in zip(*windows.values(), strict=True):
        pairs = [(first.spent, second.spent) for first, second in trial if first.spent and second.spent]
        verdict = rejection([window for pair in pairs for window in pair], pairs, RejectionRules())
        if verdict is not None:
            causes.append(verdict.cause)
    return list(dict.fromkeys(causes))


def _summary(own: _Pairs, reference: _Pairs, idle_w: float | None) -> Facts:
    """Medians over the trials, and the ratios to the reference."""
    seconds, base_s = ([(a.run_s + b.run_s) / 2 for a, b in pairs] for pairs in (own, reference))
    row: Facts = {
        "ms": statistics.median(seconds) * 1e3,
        "speedup": statistics.median(base / mine for base, mine in zip(base_s, seconds, strict=True)),
    }
    joules, base_j = ([(a.run_j + b.run_j) / 2 for a, b in pairs] for pairs in (own, reference))
    ratios = [mine / base for mine, base in zip(joules, base_j, strict=True)]
    if any(math.isnan(ratio) for ratio in ratios):
        return row
    ratio, energy_j = statistics.median(ratios), statistics.median(joules)
    low, high = ratio_interval(ratio, ratios, _CONFIDENCE)
    row |= {
        "energy_j": energy_j,
        "watts": energy_j / statistics.median(seconds),
        "energy_ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "window_spread": max(abs(a.run_j - b.run_j) / (a.run_j + b.run_j) * 2 for a, b in own),
    }
    if idle_w is not None:
        row["energy_above_idle_j"] = energy_j - idle_w * statistics.median(seconds)
    return row
