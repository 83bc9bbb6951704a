"""Heat, throttling and other processes on a GPU are seen and spoil a trial."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from comparisons import interval
from fake_nvml import FakeGpu, FakeNvml
from fake_time import FakeTime
from metering import measured
from nvml_meters import make_meter

from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.nvml import NvmlMeter
from wattbit.errors import MeterError


def test_heat_throttling_and_strangers_are_in_the_detail() -> None:
    gpu = FakeGpu(temperature_c=40.0)
    meter, passing = make_meter(gpu)

    def work() -> None:
        passing.work(5.0)
        gpu.temperature_c = 61.0
        gpu.reasons = 0x40 | 0x04
        gpu.violation_ns = 2_500_000
        gpu.processes = [os.getpid(), 999_999_999]

    detail = measured(meter, work).detail
    assert detail["temperature_begin_c"] == 40.0
    assert detail["temperature_end_c"] == 61.0
    assert detail["throttle"] == "HwThermalSlowdown of GPU 0, 2.5 ms of thermal throttling"
    assert detail["foreign_processes"] == 1.0


def test_the_names_of_older_packages_work_as_well() -> None:
    passing = FakeTime()
    nvml = FakeNvml([FakeGpu(reasons=0x40)], clock=passing, old_names=True)
    meter = NvmlMeter(nvml=nvml, clocks=passing.clocks(), environ={}, wait=lambda: None)
    assert "HwThermalSlowdown" in str(measured(meter, lambda: passing.work(5.0)).detail["throttle"])


def test_running_at_the_power_cap_is_no_throttling() -> None:
    meter, passing = make_meter(FakeGpu(reasons=0x04))
    assert measured(meter, lambda: passing.work(5.0)).detail["throttle"] == ""


def test_this_process_is_no_stranger_even_where_the_host_numbers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(processes=[os.getpid()])
    meter, passing = make_meter(gpu)
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 0.0
    gpu.processes = [424_242]
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 1.0
    in_use = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", in_use)
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 0.0


def test_what_a_board_does_not_report_is_left_out() -> None:
    meter, passing = make_meter(FakeGpu(temperature_c=None, limit_w=None, mig=None))
    detail = measured(meter, lambda: passing.work(5.0)).detail
    assert "temperature_begin_c" not in detail


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda gpu: setattr(gpu, "reasons", 0x40), "throttled (HwThermalSlowdown of GPU 0)"),
        (lambda gpu: setattr(gpu, "processes", [424_242]), "1 foreign processes on the device"),
        (
            lambda gpu: setattr(gpu, "temperature_c", gpu.temperature_c + 2.0),
            "temperature moved by more than 5",
        ),
    ],
)
def test_a_device_that_is_never_left_alone_gives_an_error_and_no_figure(
    spoil: Callable[[FakeGpu], None], cause: str
) -> None:
    gpu = FakeGpu()
    meter, passing = make_meter(gpu)

    def work() -> None:
        passing.work(0.5)
        spoil(gpu)

    with pytest.raises(MeterError, match="trials were rejected") as refused:
        compare(meter, work, work, MeasurementProtocol(trials=2), clock=passing, sleep=passing.work)
    assert cause in str(refused.value)
    assert "leave the device to this process alone" in str(refused.value)


def test_the_protocol_fills_the_meter_s_shortest_window_and_begins_at_random_moments() -> None:
    gpu = FakeGpu(refresh_s=0.1, watts=lambda seconds: 100.0)
    meter, passing = make_meter(gpu)
    gaps = []

    def sleep(seconds: float) -> None:
        gaps.append(seconds)
        passing.work(seconds)

    found = compare(
        meter,
        lambda: passing.work(0.02),
        lambda: passing.work(0.01),
        MeasurementProtocol(trials=4),
        clock=passing,
        sleep=sleep,
    )
    assert 500 <= found.repeats <= 501
    assert found.energy_ratio == pytest.approx(0.5, rel=0.03)
    low, high = interval(found)
    assert low <= found.energy_ratio <= high
    assert len(set(gaps)) == len(gaps) == 16
    assert max(gaps) <= 0.2
