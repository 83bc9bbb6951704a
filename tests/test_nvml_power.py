"""Power is integrated where an NVIDIA GPU has no counter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml
from fake_time import FakeTime
from metering import measured, refusal
from nvml_meters import make_meter

from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.nvml_power import PowerSampler
from wattbit.errors import MeterError


class ReadGpu(FakeGpu):
    """A GPU that tells how often its power was read."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        watts, self.readings = self.watts, threading.Semaphore(0)

        def read(seconds: float) -> float:
            self.readings.release()
            return watts(seconds)

        self.watts = read

    def wait_for_readings(self, count: int) -> None:
        """Wait until its power was read ``count`` times more."""
        for _ in range(count):
            assert self.readings.acquire(timeout=20)


def join_sampling() -> None:
    """Wait until no thread samples any more."""
    for thread in threading.enumerate():
        if thread.name == "wattbit-power":
            thread.join(20)


def test_without_a_counter_instant_power_is_integrated_and_the_period_stated() -> None:
    gpu = ReadGpu(counter=False, watts=lambda seconds: 120.0)
    meter = NvmlMeter(nvml=FakeNvml([gpu]), environ={}, wait=lambda: None, sampling_s=0.005)
    energy = measured(meter, lambda: gpu.wait_for_readings(20))
    assert energy.energy_j / energy.seconds == pytest.approx(120.0, rel=0.2)
    assert energy.detail["gpu_0_source"] == "NVML instant power, integrated"
    assert energy.detail["sampling_s"] == 0.005


def test_a_counter_that_always_reads_zero_counts_as_missing() -> None:
    gpu = FakeGpu(stuck_mj=0, power=False)
    with pytest.raises(MeterError, match="has no energy counter and no instant power"):
        make_meter(gpu)
    gpu = ReadGpu(stuck_mj=0)
    meter = NvmlMeter(nvml=FakeNvml([gpu]), environ={}, wait=lambda: None, sampling_s=0.005)
    found = measured(meter, lambda: gpu.wait_for_readings(3))
    assert found.detail["gpu_0_source"] == "NVML instant power, integrated"


def test_the_trapezoid_rule_is_exact_for_power_that_changes_steadily() -> None:
    passing, turns = FakeTime(), iter([False] * 40 + [True])

    def pause(stop: threading.Event, period_s: float) -> bool:
        passing.work(period_s)
        return next(turns)

    sampler = PowerSampler(
        lambda: (100.0 + 10.0 * passing.seconds, 7.0),
        0.05,
        lambda: round(passing.seconds * 1e9),
        pause,
    )
    sampler.start()
    join_sampling()
    rising_j, steady_j = sampler.stop()
    assert steady_j == pytest.approx(7.0 * 2.05)
    assert rising_j == pytest.approx(100.0 * 2.05 + 5.0 * (3.05**2 - 1.0))


def sampled_by(
    pause: Callable[[threading.Event, float], bool], read: Callable[[], Any], passing: FakeTime
) -> str:
    sampler = PowerSampler(read, 0.05, lambda: round(passing.seconds * 1e9), pause)
    sampler.start()
    join_sampling()
    with pytest.raises(MeterError) as refused:
        sampler.stop()
    return str(refused.value)


def test_an_error_while_sampling_comes_out_when_the_window_closes() -> None:
    passing, watts = FakeTime(), iter([100.0, 100.0])
    told = sampled_by(lambda stop, period_s: False, lambda: (next(watts),), passing)
    assert "reading the power failed in the window" in told


def test_a_gap_between_samples_is_not_bridged() -> None:
    passing, gaps = FakeTime(), iter([0.05, 0.05, 3.0])

    def pause(stop: threading.Event, period_s: float) -> bool:
        gap_s = next(gaps, None)
        passing.work(gap_s or 0.0)
        return gap_s is None

    assert "no power sample for 3 s" in sampled_by(pause, lambda: (100.0,), passing)


def test_a_window_without_time_for_two_samples_is_refused() -> None:
    told = sampled_by(lambda stop, period_s: True, lambda: (100.0,), FakeTime())
    assert "needs 2 apart in time; repeat the work more often" in told


def test_a_power_reading_that_dies_in_the_window_is_an_error_and_leaves_no_thread() -> None:
    gpu = FakeGpu(counter=False)
    meter = NvmlMeter(nvml=FakeNvml([gpu]), environ={}, wait=lambda: None, sampling_s=0.002)

    def die() -> None:
        gpu.power = False
        join_sampling()

    assert "reading the power failed" in refusal(meter, die)
    assert not [thread for thread in threading.enumerate() if thread.name == "wattbit-power"]


def test_work_that_raises_stops_the_sampling_too() -> None:
    meter = NvmlMeter(nvml=FakeNvml([FakeGpu(counter=False)]), environ={}, wait=lambda: None)
    with pytest.raises(ValueError, match="broken"), meter.window() as window:
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "wattbit-power"]
    with pytest.raises(MeterError, match="raised ValueError"):
        _ = window.result
