"""NVIDIA's counter: joules that were counted, or an error that says what to do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml
from fake_time import FakeTime
from hypothesis import given, settings
from hypothesis import strategies as st
from metering import measured, refusal

from wattbit.energy.counter import CounterMeter
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.nvml_power import PowerSampler
from wattbit.energy.protocol import compare
from wattbit.errors import MeterError

OTHER = "GPU-22222222-3333"


def make(*gpus: FakeGpu, passing: FakeTime | None = None, **more: Any) -> tuple[NvmlMeter, FakeTime]:
    passing = passing or FakeTime()
    nvml = FakeNvml(gpus or None, clock=passing)
    settings_ = {"environ": {}, "wait": lambda: None, **more}
    return NvmlMeter(nvml=nvml, clocks=passing.clocks(), **settings_), passing


# --- what is counted --------------------------------------------------------------------------------------


def test_the_counter_s_millijoules_come_out_as_joules() -> None:
    meter, passing = make(FakeGpu(watts=lambda seconds: 250.0))
    energy = measured(meter, lambda: passing.work(4.0))
    assert energy.energy_j == pytest.approx(1000.0)
    assert energy.seconds == pytest.approx(4.0)
    assert energy.provenance == "measured"
    assert energy.device == "gpu: NVIDIA Fake 100"
    assert energy.detail["gpu_0_source"] == "NVML energy counter"
    assert energy.detail["driver"] == "999.1"


def test_it_is_a_counter_meter_and_states_its_refresh_and_shortest_window() -> None:
    meter, _ = make(min_window_s=7.0)
    assert isinstance(meter, EnergyMeter)
    assert isinstance(meter, CounterMeter)
    assert (meter.refresh_s, meter.min_window_s) == (0.1, 7.0)


@given(watts=st.floats(5.0, 900.0), seconds=st.floats(0.5, 100.0), offset=st.integers(1, 2**50))
@settings(deadline=None, max_examples=60)
def test_energy_is_power_times_time_whatever_the_counter_shows_already(
    watts: float, seconds: float, offset: int
) -> None:
    meter, passing = make(FakeGpu(watts=lambda now: watts, offset_mj=offset))
    assert measured(meter, lambda: passing.work(seconds)).energy_j == pytest.approx(watts * seconds, abs=2e-3)


def test_several_gpus_are_added_up_each_with_its_own_figure() -> None:
    gpus = FakeGpu(), FakeGpu(uuid=OTHER, watts=lambda seconds: 50.0)
    meter, passing = make(*gpus, gpus=[0, 1])
    energy = measured(meter, lambda: passing.work(2.0))
    assert energy.energy_j == pytest.approx(500.0)
    assert energy.detail["gpu_0_j"] == pytest.approx(400.0)
    assert energy.detail["gpu_1_j"] == pytest.approx(100.0)


def test_work_queued_on_the_gpu_is_waited_for_before_each_reading() -> None:
    waits = []
    meter, passing = make(wait=lambda: waits.append(passing.seconds), passing=(passing := FakeTime()))
    measured(meter, lambda: passing.work(1.0))
    assert waits == [1.0, 2.0]


def test_a_gpu_that_is_not_asked_for_is_not_billed() -> None:
    meter, passing = make(FakeGpu(), FakeGpu(uuid=OTHER, watts=lambda seconds: 50.0), gpus=[1])
    assert measured(meter, lambda: passing.work(2.0)).energy_j == pytest.approx(100.0)


# --- power, where there is no counter ---------------------------------------------------------------------


def test_without_a_counter_instant_power_is_integrated_and_the_period_stated() -> None:
    gpu = FakeGpu(counter=False, watts=lambda seconds: 120.0)
    meter = NvmlMeter(nvml=FakeNvml([gpu]), environ={}, wait=lambda: None, sampling_s=0.005)
    with meter.window() as window:
        time.sleep(0.1)
    energy = window.result
    assert energy.energy_j / energy.seconds == pytest.approx(120.0, rel=0.2)
    assert energy.detail["gpu_0_source"] == "NVML instant power, integrated"
    assert energy.detail["sampling_s"] == 0.005


def test_a_counter_that_always_reads_zero_counts_as_missing() -> None:
    gpu = FakeGpu(stuck_mj=0, power=False)
    with pytest.raises(MeterError, match="has no energy counter and no instant power"):
        make(gpu)
    assert make(FakeGpu(stuck_mj=0))[0]._sampled


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
    sampler._thread.join()
    rising_j, steady_j = sampler.stop()
    assert steady_j == pytest.approx(7.0 * 2.05)
    assert rising_j == pytest.approx(100.0 * 2.05 + 5.0 * (3.05**2 - 1.0))


def sampled_by(
    pause: Callable[[threading.Event, float], bool], read: Callable[[], Any], passing: FakeTime
) -> str:
    sampler = PowerSampler(read, 0.05, lambda: round(passing.seconds * 1e9), pause)
    sampler.start()
    sampler._thread.join()
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
        time.sleep(0.05)

    assert "reading the power failed" in refusal(meter, die)
    assert not [thread for thread in threading.enumerate() if thread.name == "wattbit-power"]


def test_work_that_raises_stops_the_sampling_too() -> None:
    meter = NvmlMeter(nvml=FakeNvml([FakeGpu(counter=False)]), environ={}, wait=lambda: None)
    with pytest.raises(ValueError, match="broken"), meter.window() as window:
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "wattbit-power"]
    with pytest.raises(MeterError, match="raised ValueError"):
        _ = window.result


# --- readings that must not become figures ----------------------------------------------------------------


def test_a_counter_that_stands_still_is_a_window_too_short_never_zero_joules() -> None:
    meter, passing = make(FakeGpu(refresh_s=0.1))
    told = refusal(meter, lambda: passing.work(0.04))
    assert "stood still for 0.04 s: the window is shorter than its refresh" in told


def test_a_counter_that_was_reset_is_an_error_never_negative_joules() -> None:
    gpu = FakeGpu()
    meter, passing = make(gpu)

    def reset() -> None:
        passing.work(5.0)
        gpu.offset_mj = -900_000

    told = refusal(meter, reset)
    assert "the energy counter went back by" in told
    assert "it was reset; measure it again" in told


def test_a_gpu_that_is_lost_in_the_window_is_an_error_with_a_remedy() -> None:
    gpu = FakeGpu()
    meter, passing = make(gpu)

    def lose() -> None:
        passing.work(5.0)
        gpu.lost = True

    assert "a GPU or its driver is gone; check it with nvidia-smi" in refusal(meter, lose)


def test_a_counter_that_jumps_is_an_error() -> None:
    gpu = FakeGpu(limit_w=300.0)
    meter, passing = make(gpu)

    def jump() -> None:
        passing.work(5.0)
        gpu.offset_mj += 2**32

    assert "0.5 to 450 W are plausible: a counter or a clock jumped" in refusal(meter, jump)


def test_a_clock_that_goes_back_is_an_error() -> None:
    gpu = FakeGpu(offset_mj=10**9)
    meter, passing = make(gpu)

    def back() -> None:
        passing.work(-0.5)
        gpu.offset_mj += 10**6

    assert "the clock went back by 0.5 s" in refusal(meter, back)


def test_a_machine_that_slept_in_the_window_is_an_error() -> None:
    meter, passing = make()

    def sleep() -> None:
        passing.work(5.0)
        passing.slept_s = 60.0

    assert "a clock jumped or the machine slept" in refusal(meter, sleep)


def test_a_result_before_the_window_closed_is_refused_and_a_window_measures_once() -> None:
    meter, passing = make()
    window = meter.window()
    with pytest.raises(MeterError, match="not closed yet"):
        _ = window.result
    with window:
        passing.work(1.0)
    with pytest.raises(MeterError, match="opened before"), window:
        pass
    assert window.result.energy_j > 0


# --- conditions that spoil a trial ------------------------------------------------------------------------


def test_heat_throttling_and_strangers_are_in_the_detail() -> None:
    gpu = FakeGpu(temperature_c=40.0)
    meter, passing = make(gpu)

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
    assert "HwThermalSlowdown" in measured(meter, lambda: passing.work(5.0)).detail["throttle"]


def test_running_at_the_power_cap_is_no_throttling() -> None:
    meter, passing = make(FakeGpu(reasons=0x04))
    assert measured(meter, lambda: passing.work(5.0)).detail["throttle"] == ""


def test_this_process_is_no_stranger_even_where_the_host_numbers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(processes=[os.getpid()])
    meter, passing = make(gpu)
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 0.0
    gpu.processes = [424_242]
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 1.0
    in_use = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", in_use)
    assert measured(meter, lambda: passing.work(5.0)).detail["foreign_processes"] == 0.0


def test_what_a_board_does_not_report_is_left_out() -> None:
    meter, passing = make(FakeGpu(temperature_c=None, limit_w=None, mig=None))
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
    meter, passing = make(gpu)

    def work() -> None:
        passing.work(0.5)
        spoil(gpu)

    with pytest.raises(MeterError, match="trials were rejected") as refused:
        compare(meter, work, work, trials=2, clock=passing, sleep=passing.work)
    assert cause in str(refused.value)
    assert "leave the device to this process alone" in str(refused.value)


def test_the_protocol_fills_the_meter_s_shortest_window_and_begins_at_random_moments() -> None:
    gpu = FakeGpu(refresh_s=0.1, watts=lambda seconds: 100.0)
    meter, passing = make(gpu)
    gaps = []

    def sleep(seconds: float) -> None:
        gaps.append(seconds)
        passing.work(seconds)

    found = compare(
        meter, lambda: passing.work(0.02), lambda: passing.work(0.01), trials=4, clock=passing, sleep=sleep
    )
    assert 500 <= found.repeats <= 501
    assert found.energy_ratio == pytest.approx(0.5, rel=0.03)
    assert found.ratio_low <= found.energy_ratio <= found.ratio_high
    assert len(set(gaps)) == len(gaps) == 16
    assert max(gaps) <= 0.2


# --- finding GPUs -----------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterError, match=r"pip install 'wattbit\[nvml\]'"):
        NvmlMeter()


def test_a_missing_driver_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(driver=None).install(monkeypatch)
    with pytest.raises(MeterError, match="install NVIDIA's driver"):
        NvmlMeter()


def test_the_installed_module_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeGpu(name="Installed")]).install(monkeypatch)
    assert NvmlMeter(environ={}).device == "gpu: Installed"


def test_a_machine_without_gpus_is_refused() -> None:
    with pytest.raises(MeterError, match="finds 0 GPUs"):
        NvmlMeter(nvml=FakeNvml([]), environ={})


def test_mig_mode_is_refused_by_name_with_the_command_that_ends_it() -> None:
    with pytest.raises(MeterError, match=r"GPU 1 \(A100\) is in MIG mode.*nvidia-smi -i 1 -mig 0"):
        make(FakeGpu(name="A100"), FakeGpu(name="A100", uuid=OTHER, mig=True), gpus=[1])


def test_a_board_without_a_source_is_refused_by_name() -> None:
    with pytest.raises(MeterError, match=r"GPU 0 \(Tesla K80\) has no energy counter and no instant power"):
        make(FakeGpu(name="Tesla K80", counter=False, power=False))
    with pytest.raises(MeterError, match=r"GPU 0 \(Tesla K80\) has no energy counter, "):
        make(FakeGpu(name="Tesla K80", counter=False), source="counter")


def visible(*gpus: FakeGpu, wanted: list[Any], **environ: str) -> list[int]:
    meter, _ = make(*gpus, gpus=wanted, environ=environ)
    return [gpu.index for gpu in meter._gpus]


def two() -> tuple[FakeGpu, FakeGpu]:
    return FakeGpu(uuid="GPU-aaaa-1"), FakeGpu(uuid="GPU-bbbb-2")


def test_numbers_are_cuda_s_after_cuda_visible_devices() -> None:
    assert visible(*two(), wanted=[0]) == [0]
    assert visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="1") == [1]
    assert visible(*two(), wanted=[1, 0], CUDA_VISIBLE_DEVICES="1, 0") == [0, 1]
    assert visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="GPU-bbbb") == [1]
    # CUDA stops at the first entry that it does not know.
    with pytest.raises(MeterError, match="CUDA sees 1 of 2 GPUs"):
        visible(*two(), wanted=[1], CUDA_VISIBLE_DEVICES="1,7,0")


def test_uuids_and_their_beginnings_name_a_gpu() -> None:
    assert visible(*two(), wanted=["GPU-bbbb-2"]) == [1]
    assert visible(*two(), wanted=["GPU-b"]) == [1]
    with pytest.raises(MeterError, match="fits no GPU, or several; choose from GPU-aaaa-1, GPU-bbbb-2"):
        visible(*two(), wanted=["GPU-"])


def test_different_models_have_no_number_unless_cuda_counts_along_the_bus() -> None:
    mixed = FakeGpu(name="T4", uuid="GPU-aaaa-1"), FakeGpu(name="H100", uuid="GPU-bbbb-2")
    with pytest.raises(MeterError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID"):
        visible(*mixed, wanted=[0])
    assert visible(*mixed, wanted=[1], CUDA_DEVICE_ORDER="PCI_BUS_ID") == [1]
    assert visible(*mixed, wanted=[0], CUDA_VISIBLE_DEVICES="GPU-bbbb-2") == [1]
    assert visible(*mixed, wanted=["GPU-bbbb-2"]) == [1]


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_are_not_measured(value: str) -> None:
    with pytest.raises(MeterError, match="CUDA sees 0 of 2 GPUs"):
        visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES=value)


def test_a_mig_instance_in_cuda_visible_devices_is_refused_by_name() -> None:
    with pytest.raises(MeterError, match="names the MIG instance MIG-1234"):
        visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="MIG-1234")


@pytest.mark.parametrize(("wanted", "told"), [([], "no GPU given"), ([0, 0], "GPU 0 is given twice")])
def test_gpus_that_make_no_sense_are_refused(wanted: list[int], told: str) -> None:
    with pytest.raises(MeterError, match=told):
        visible(*two(), wanted=wanted)


@pytest.mark.parametrize(
    "bad", [{"min_window_s": 0.0}, {"sampling_s": float("nan")}, {"min_window_s": float("inf")}]
)
def test_times_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(MeterError, match="must be above 0 and finite"):
        make(**bad)


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterError, match="unknown source 'magic'; choose from counter, power"):
        make(source="magic")


def test_a_meter_covers_the_gpus_it_reads_and_nothing_else() -> None:
    meter, _ = make(*two(), gpus=[1])
    assert meter.covers("cuda:1")
    assert not meter.covers("cuda:0")
    assert not meter.covers("cuda")
    assert not meter.covers("cpu")
    first, _ = make(*two())
    assert first.covers("cuda")
