"""Zeus behind the same protocol: AMD's GPUs, Apple silicon and Jetson boards, by a fake of the package."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_time import FakeTime
from metering import measured

from wattbit.energy.counter import CounterMeter
from wattbit.energy.interleaved import compare
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.zeus import ZeusMeter
from wattbit.errors import MeterError


@dataclass
class AppleSiliconMeasurement:
    """As Zeus reports it, millijoules."""

    cpu_total_mj: int | None = None
    performance_cores_mj: list[int] | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    dram_mj: int | None = None
    ane_mj: int | None = None


@dataclass
class JetsonMeasurement:
    """As Zeus reports it, millijoules."""

    cpu_energy_mj: float | None = None
    gpu_energy_mj: float | None = None
    total_energy_mj: float | None = None


@dataclass
class FakeMonitor:
    """What ``zeus.monitor.ZeusMonitor`` is to a meter.

    Attributes:
        time: The clock.
        gpu_watts: Power of each GPU.
        soc: What a system on a chip reports for so many seconds; None if there is none.
        skew_s: How much longer windows seem to Zeus, which reads the system's clock.
        breaks: True if the next window fails.
    """

    time: FakeTime
    gpu_watts: dict[int, float] = field(default_factory=dict)
    soc: Callable[[float], Any] | None = None
    skew_s: float = 0.0
    breaks: bool = False
    open: dict[str, float] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    gpus: Any = None

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        """Open a window."""
        assert not sync_execution  # Zeus would need CUDA for it
        assert key not in self.open
        self.open[key] = self.time.seconds

    def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> Any:
        """Close a window."""
        seconds = self.time.seconds - self.open.pop(key)
        if self.breaks:
            raise RuntimeError("amdsmi is gone")
        if cancel:
            self.cancelled.append(key)
            seconds = 0.0
        energy = {index: watts * seconds for index, watts in self.gpu_watts.items()}
        if 0.0 in energy.values() and not cancel:
            warnings.warn("The energy consumption of one or more GPUs was measured as zero.", stacklevel=1)
        return SimpleNamespace(
            time=seconds + self.skew_s,
            gpu_energy=energy,
            soc_energy=self.soc(seconds) if self.soc else None,
        )


def make(monitor: FakeMonitor, **more: Any) -> ZeusMeter:
    return ZeusMeter(monitor=monitor, clocks=monitor.time.clocks(), wait=lambda: None, **more)


def apple(seconds: float) -> AppleSiliconMeasurement:
    return AppleSiliconMeasurement(
        cpu_total_mj=int(4000 * seconds), performance_cores_mj=[1], gpu_mj=int(1000 * seconds), ane_mj=0
    )


def test_gpus_are_added_up() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0, 1: 100.0})
    meter = make(monitor)
    energy = measured(meter, lambda: monitor.time.work(2.0))
    assert energy.energy_j == pytest.approx(800.0)
    assert energy.seconds == pytest.approx(2.0)
    assert energy.provenance == "measured"
    assert energy.detail == {"gpu_0_j": pytest.approx(600.0), "gpu_1_j": pytest.approx(200.0)}
    assert energy.device == "gpu: GPU 0 + GPU 1"


def test_gpus_have_the_name_that_zeus_knows() -> None:
    names = SimpleNamespace(get_name=lambda index: "Instinct MI300X")
    assert make(FakeMonitor(FakeTime(), {0: 300.0}, gpus=names)).device == "gpu: Instinct MI300X"


def test_it_is_a_counter_meter() -> None:
    meter = make(FakeMonitor(FakeTime(), {0: 300.0}))
    assert isinstance(meter, EnergyMeter)
    assert isinstance(meter, CounterMeter)
    assert meter.covers("cuda:0")
    assert not meter.covers("cpu")


def test_the_parts_of_apple_silicon_are_added_and_cores_are_not_counted_twice() -> None:
    monitor = FakeMonitor(FakeTime(), soc=apple)
    meter = make(monitor)
    assert meter.device == "soc: AppleSilicon"
    assert measured(meter, lambda: monitor.time.work(2.0)).energy_j == pytest.approx(10.0)
    assert meter.covers("mps")
    assert meter.covers("cpu")


def test_jetson_s_total_is_taken_where_there_is_one_else_its_parts() -> None:
    monitor = FakeMonitor(FakeTime(), soc=lambda seconds: JetsonMeasurement(1e3, 2e3, 7e3))
    assert measured(make(monitor), lambda: monitor.time.work(1.0)).energy_j == pytest.approx(7.0)
    monitor.soc = lambda seconds: JetsonMeasurement(1e3, 2e3, None)
    assert measured(make(monitor), lambda: monitor.time.work(1.0)).energy_j == pytest.approx(3.0)


def test_a_gpu_beside_a_system_on_a_chip_must_be_chosen() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0}, soc=apple)
    with pytest.raises(MeterError, match="choose one with energy"):
        make(monitor)
    assert make(monitor, part="gpu").device.startswith("gpu")
    assert make(monitor, part="soc").device.startswith("soc")


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(MeterError, match="no GPU and no system on a chip here"):
        make(FakeMonitor(FakeTime()))
    with pytest.raises(MeterError, match="Zeus finds gpu here, not soc"):
        make(FakeMonitor(FakeTime(), {0: 1.0}), part="soc")


def test_zero_joules_are_an_error_and_zeus_s_warning_is_not_passed_on() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    meter = make(monitor)
    monitor.gpu_watts[0] = 0.0
    with pytest.raises(MeterError, match="gpu_0: Zeus reads 0 J for 1 s"):
        measured(meter, lambda: monitor.time.work(1.0))


def test_negative_joules_are_an_error() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    meter = make(monitor)
    monitor.gpu_watts[0] = -5.0
    with pytest.raises(MeterError, match="a counter or a clock jumped"):
        measured(meter, lambda: monitor.time.work(1.0))


def test_parts_that_nobody_knows_are_an_error() -> None:
    monitor = FakeMonitor(FakeTime(), soc=lambda seconds: SimpleNamespace(npu_mj=3))
    meter = make(monitor)
    with pytest.raises(MeterError, match="reports no energy of SimpleNamespace that wattbit knows"):
        measured(meter, lambda: monitor.time.work(1.0))


def test_a_system_clock_that_was_set_in_the_window_is_an_error() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    meter = make(monitor)
    monitor.skew_s = 3600.0
    with pytest.raises(MeterError, match="the system's clock was set"):
        measured(meter, lambda: monitor.time.work(1.0))


def test_what_zeus_raises_becomes_a_meter_error_with_a_remedy() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    meter = make(monitor)
    monitor.breaks = True
    with pytest.raises(MeterError, match=r"RuntimeError: amdsmi is gone\); check it with python -m zeus"):
        measured(meter, lambda: monitor.time.work(1.0))


def test_a_window_whose_work_raised_is_cancelled_and_the_meter_goes_on() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    meter = make(monitor)
    with pytest.raises(ValueError, match="broken"), meter.window():
        raise ValueError("broken")
    assert monitor.cancelled
    assert not monitor.open
    assert measured(meter, lambda: monitor.time.work(1.0)).energy_j == pytest.approx(300.0)


def test_a_first_window_is_thrown_away_so_that_zeus_s_children_start_in_none_that_counts() -> None:
    opened: list[str] = []

    class Counting(FakeMonitor):
        def begin_window(self, key: str, sync_execution: bool = True) -> None:
            opened.append(key)
            super().begin_window(key, sync_execution)

    monitor = Counting(FakeTime(), {0: 300.0})
    make(monitor)
    assert len(opened) == 1
    assert not monitor.open


def test_the_protocol_measures_with_it() -> None:
    monitor = FakeMonitor(FakeTime(), {0: 300.0})
    found = compare(
        make(monitor),
        lambda: monitor.time.work(0.1),
        lambda: monitor.time.work(0.05),
        clock=monitor.time,
        sleep=monitor.time.work,
    )
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.reference_s * found.repeats >= 5.0


def install(monkeypatch: pytest.MonkeyPatch, monitor: Any) -> None:
    package, module = ModuleType("zeus"), ModuleType("zeus.monitor")
    module.ZeusMonitor = monitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", package)
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)


def test_the_installed_package_is_used_and_its_cpu_counters_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def monitor(**arguments: Any) -> FakeMonitor:
        asked.update(arguments)
        return FakeMonitor(FakeTime(), {1: 300.0})

    install(monkeypatch, monitor)
    assert ZeusMeter([1]).device == "gpu: GPU 1"
    assert asked == {"gpu_indices": [1], "cpu_indices": []}


def test_a_missing_package_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(MeterError, match=r"pip install 'wattbit\[zeus\]'"):
        ZeusMeter()


def test_a_package_that_cannot_start_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def monitor(**arguments: Any) -> FakeMonitor:
        raise RuntimeError("no driver")

    install(monkeypatch, monitor)
    with pytest.raises(MeterError, match=r"Zeus cannot start \(RuntimeError: no driver\)"):
        ZeusMeter()


def test_a_window_length_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(MeterError, match="must be above 0 and finite"):
        make(FakeMonitor(FakeTime(), {0: 300.0}), min_window_s=0.0)
