"""Timing of benchmarks: what drift and disturbance do not move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.benchmarks.timing import best_s, compare_times


class _Clock:
    """Time that passes when works run, faster or slower as the machine drifts."""

    def __init__(self, drift: float = 0.0) -> None:
        self.seconds = 0.0
        self._drift = drift

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.seconds += seconds * (1.0 + self._drift * self.seconds)

        return run


@given(ratio=st.floats(0.1, 10.0), base=st.floats(1e-5, 0.1))
@settings(deadline=None, max_examples=50)
def test_a_speedup_is_reference_time_over_candidate_time(ratio: float, base: float) -> None:
    clock = _Clock()
    timing = compare_times(clock.work(base), clock.work(base / ratio), trials=3, clock=clock)
    assert timing.speedup == pytest.approx(ratio)
    assert timing.reference_s == pytest.approx(base)
    assert timing.candidate_s == pytest.approx(base / ratio)
    assert timing.spread == pytest.approx(0.0, abs=1e-9)


def test_a_machine_that_slows_down_steadily_favours_nobody() -> None:
    clock = _Clock(drift=0.05)
    timing = compare_times(clock.work(0.01), clock.work(0.01), window_s=0.02, trials=5, clock=clock)
    assert timing.speedup == pytest.approx(1.0, abs=1e-4)


def test_a_trial_that_another_process_disturbs_does_not_move_the_median() -> None:
    clock = _Clock()
    runs = 0

    def candidate() -> None:
        nonlocal runs
        runs += 1
        clock.seconds += 5.0 if runs == 20 else 0.01

    timing = compare_times(clock.work(0.02), candidate, window_s=0.02, trials=7, clock=clock)
    assert timing.speedup == pytest.approx(2.0)


def test_work_that_a_device_still_does_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    queued = [0.0]

    def launch(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock.seconds += 1e-4  # what launching takes
            queued[0] += seconds

        return run

    def wait() -> None:
        clock.seconds += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr("wattbit.energy.trial.synchronize", wait)
    timing = compare_times(launch(0.01), launch(0.005), trials=3, clock=clock)
    assert timing.speedup == pytest.approx(0.0101 / 0.0051)


def test_the_best_time_is_that_of_the_undisturbed_run() -> None:
    clock = _Clock()
    runs = 0

    def work() -> None:
        nonlocal runs
        runs += 1
        clock.seconds += 0.03 if runs % 3 else 0.02

    assert best_s(work, window_s=0.02, trials=6, clock=clock) == pytest.approx(0.025, abs=0.0051)
