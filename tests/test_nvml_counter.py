"""NVIDIA's counter: joules that were counted, or an error that says what to do."""

from __future__ import annotations

import pytest
from fake_nvml import FakeGpu
from fake_time import FakeTime
from hypothesis import given, settings
from hypothesis import strategies as st
from metering import measured, refusal
from nvml_meters import OTHER, make_meter

from wattbit.energy.counter import CounterMeter
from wattbit.energy.meter import EnergyMeter
from wattbit.errors import MeterError

# --- what is counted --------------------------------------------------------------------------------------


def test_the_counter_s_millijoules_come_out_as_joules() -> None:
    meter, passing = make_meter(FakeGpu(watts=lambda seconds: 250.0))
    energy = measured(meter, lambda: passing.work(4.0))
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.seconds == pytest.approx(4.0)
    assert energy.provenance == "measured"
    assert energy.device == "gpu: NVIDIA Fake 100"
    assert energy.detail["gpu_0_source"] == "NVML energy counter"
    assert energy.detail["driver"] == "999.1"


def test_it_is_a_counter_meter_and_states_its_refresh_and_shortest_window() -> None:
    meter, _ = make_meter(min_window_s=7.0)
    assert isinstance(meter, EnergyMeter)
    assert isinstance(meter, CounterMeter)
    assert (meter.refresh_s, meter.min_window_s) == (0.1, 7.0)


@given(watts=st.floats(5.0, 900.0), seconds=st.floats(0.5, 100.0), offset=st.integers(1, 2**50))
@settings(deadline=None, max_examples=60)
def test_energy_is_power_times_time_whatever_the_counter_shows_already(
    watts: float, seconds: float, offset: int
) -> None:
    meter, passing = make_meter(FakeGpu(watts=lambda now: watts, offset_mj=offset))
    assert measured(meter, lambda: passing.work(seconds)).energy_j == pytest.approx(watts * seconds, abs=2e-3)


def test_several_gpus_are_added_up_each_with_its_own_figure() -> None:
    gpus = FakeGpu(), FakeGpu(uuid=OTHER, watts=lambda seconds: 50.0)
    meter, passing = make_meter(*gpus, gpus=[0, 1])
    energy = measured(meter, lambda: passing.work(2.0))
    assert energy.energy_j == pytest.approx(500.0)
    assert energy.detail["gpu_0_j"] == pytest.approx(400.0)
    assert energy.detail["gpu_1_j"] == pytest.approx(100.0)


def test_work_queued_on_the_gpu_is_waited_for_before_each_reading() -> None:
    waits: list[float] = []
    passing = FakeTime()
    meter, _ = make_meter(wait=lambda: waits.append(passing.seconds), passing=passing)
    measured(meter, lambda: passing.work(1.0))
    assert waits == [1.0, 2.0]


def test_a_gpu_that_is_not_asked_for_is_not_billed() -> None:
    meter, passing = make_meter(FakeGpu(), FakeGpu(uuid=OTHER, watts=lambda seconds: 50.0), gpus=[1])
    assert measured(meter, lambda: passing.work(2.0)).energy_j == pytest.approx(100.0)


# --- readings that must not become figures ----------------------------------------------------------------


def test_a_counter_that_stands_still_is_a_window_too_short_never_zero_joules() -> None:
    meter, passing = make_meter(FakeGpu(refresh_s=0.1))
    told = refusal(meter, lambda: passing.work(0.04))
    assert "stood still for 0.04 s: the window is shorter than its refresh" in told


def test_a_counter_that_was_reset_is_an_error_never_negative_joules() -> None:
    gpu = FakeGpu()
    meter, passing = make_meter(gpu)

    def reset() -> None:
        passing.work(5.0)
        gpu.offset_mj = -900_000

    told = refusal(meter, reset)
    assert "the energy counter went back by" in told
    assert "it was reset; measure it again" in told


def test_a_gpu_that_is_lost_in_the_window_is_an_error_with_a_remedy() -> None:
    gpu = FakeGpu()
    meter, passing = make_meter(gpu)

    def lose() -> None:
        passing.work(5.0)
        gpu.lost = True

    assert "a GPU or its driver is gone; check it with nvidia-smi" in refusal(meter, lose)


def test_a_counter_that_jumps_is_an_error() -> None:
    gpu = FakeGpu(limit_w=300.0)
    meter, passing = make_meter(gpu)

    def jump() -> None:
        passing.work(5.0)
        gpu.offset_mj += 2**32

    assert "0.5 to 450 W are plausible: a counter or a clock jumped" in refusal(meter, jump)


def test_a_clock_that_goes_back_is_an_error() -> None:
    gpu = FakeGpu(offset_mj=10**9)
    meter, passing = make_meter(gpu)

    def back() -> None:
        passing.work(-0.5)
        gpu.offset_mj += 10**6

    assert "the clock went back by 0.5 s" in refusal(meter, back)


def test_a_machine_that_slept_in_the_window_is_an_error() -> None:
    meter, passing = make_meter()

    def sleep() -> None:
        passing.work(5.0)
        passing.slept_s = 60.0

    assert "a clock jumped or the machine slept" in refusal(meter, sleep)


def test_a_result_before_the_window_closed_is_refused_and_a_window_measures_once() -> None:
    meter, passing = make_meter()
    window = meter.window()
    with pytest.raises(MeterError, match="not closed yet"):
        _ = window.result
    with window:
        passing.work(1.0)
    with pytest.raises(MeterError, match="opened before"), window:
        pass
    assert window.result.energy_j > 0
