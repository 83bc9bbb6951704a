"""RAPL: the joules of the right zones, wrapped counters included, or an error that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_powercap import RANGE_UJ, FakePowercap, FakeProcStat
from fake_time import FakeTime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metering import measured, refusal

from wattbit.energy.counter import CounterMeter
from wattbit.energy.cpu_load import CpuTimes, foreign_share, own_cpu_s, read_cpu_times
from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.rapl import RaplMeter
from wattbit.errors import MeterError

LAPTOP = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "uncore",
    "intel-rapl:0:2": "dram",
    "intel-rapl:1": "psys",
    "intel-rapl-mmio:0": "package-0",
}
SERVER = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
}


class Machine:
    """Power zones, CPU time and a clock."""

    def __init__(self, folder: Path, zones: dict[str, str], range_uj: int = RANGE_UJ) -> None:
        root = folder / "powercap"
        root.mkdir()
        self.powercap = FakePowercap(root, zones, range_uj)
        self.cpu = FakeProcStat(folder / "stat")
        self.time = FakeTime()

    def meter(self, **more: Any) -> RaplMeter:
        """The meter of this machine."""
        return RaplMeter(
            root=self.powercap.root,
            proc_stat=self.cpu.path,
            read=self.powercap.read,
            own_s=self.cpu.own,
            clocks=self.time.clocks(),
            **more,
        )

    def work(self, seconds: float = 2.0, watts: float = 20.0, foreign_s: float = 0.0) -> None:
        """Be busy: every zone counts the same joules."""
        self.time.work(seconds)
        self.cpu.work(seconds, foreign_s)
        self.powercap.spend(watts * seconds)


@pytest.fixture
def laptop(tmp_path: Path) -> Machine:
    return Machine(tmp_path, LAPTOP)


@pytest.fixture
def server(tmp_path: Path) -> Machine:
    return Machine(tmp_path, SERVER)


# --- the right zones --------------------------------------------------------------------------------------


def test_package_and_memory_are_added_and_nothing_is_counted_twice(laptop: Machine) -> None:
    meter = laptop.meter()
    assert meter.zones == ("package-0", "package-0/dram")
    energy = measured(meter, lambda: laptop.work(2.0, watts=20.0))
    assert energy.energy_j == pytest.approx(80.0)
    assert energy.seconds == pytest.approx(2.0)
    assert energy.provenance == "measured"
    assert energy.device.startswith("cpu: ")
    assert energy.detail["package-0_j"] == pytest.approx(40.0)


def test_all_sockets_are_added(server: Machine) -> None:
    meter = server.meter()
    assert meter.zones == ("package-0", "package-0/dram", "package-1", "package-1/dram")
    assert measured(meter, lambda: server.work(1.0, watts=10.0)).energy_j == pytest.approx(40.0)


def test_dies_of_a_package_are_packages(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"intel-rapl:0": "package-0-die-0", "intel-rapl:1": "package-0-die-1"})
    assert machine.meter().zones == ("package-0-die-0", "package-0-die-1")


def test_memory_is_left_out_where_the_machine_has_no_such_zone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core"})
    assert machine.meter().zones == ("package-0",)


def test_other_zones_can_be_asked_for_by_themselves(laptop: Machine) -> None:
    assert laptop.meter(domains=["psys"]).zones == ("psys",)
    assert laptop.meter(domains=["core", "dram"]).zones == ("package-0/core", "package-0/dram")


@pytest.mark.parametrize(
    ("domains", "told"),
    [
        (["package", "psys"], "'psys' counts packages and memory as well; choose it alone"),
        (["package", "core"], "'core' is part of 'package' and would count twice"),
        (["gpu"], "'gpu' given; choose from package, dram, core, uncore, psys"),
        ([], "nothing given"),
    ],
)
def test_zones_that_overlap_or_do_not_exist_are_refused(
    laptop: Machine, domains: list[str], told: str
) -> None:
    with pytest.raises(MeterError, match=told):
        laptop.meter(domains=domains)


def test_a_zone_the_machine_lacks_is_refused_with_those_it_has(server: Machine) -> None:
    with pytest.raises(MeterError, match="no RAPL zone 'psys' on this machine; it has package-0, "):
        server.meter(domains=["psys"])


# --- counters that wrap, stand still, vanish or are reset -------------------------------------------------


@given(start=st.integers(0, RANGE_UJ - 1), joules=st.floats(0.01, 2000.0))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_counter_that_begins_again_gives_the_same_joules(
    tmp_path_factory: pytest.TempPathFactory, start: int, joules: float
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"), {"intel-rapl:0": "package-0"})
    machine.powercap.set("intel-rapl:0", start)
    energy = measured(machine.meter(), lambda: machine.work(10.0, watts=joules / 10.0))
    assert energy.energy_j == pytest.approx(joules, abs=2e-6)
    assert energy.energy_j > 0


def test_a_window_in_which_the_counter_could_wrap_twice_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"intel-rapl:0": "package-0"}, range_uj=65_000_000)
    told = refusal(machine.meter(max_w=100.0), lambda: machine.work(0.7, watts=90.0))
    assert "its counter could have begun again more than once (65 J at up to 100 W)" in told
    assert "keep windows below 0.65 s" in told
    assert measured(machine.meter(max_w=100.0), lambda: machine.work(0.6, watts=90.0)).energy_j > 0


def test_a_counter_that_stands_still_is_an_error_never_zero_joules(laptop: Machine) -> None:
    told = refusal(laptop.meter(), lambda: laptop.time.work(1.0))
    assert "zone package-0: its counter stood still for 1 s" in told


def test_a_memory_zone_that_never_counts_is_named_with_the_way_to_leave_it_out(laptop: Machine) -> None:
    def work() -> None:
        laptop.time.work(1.0)
        laptop.powercap.spend(10.0, "intel-rapl:0")

    assert "energy.meter.domains=[package]" in refusal(laptop.meter(), work)
    assert measured(laptop.meter(domains=["package"]), work).energy_j == pytest.approx(10.0)


def test_a_counter_that_was_reset_is_an_error_and_no_huge_figure(laptop: Machine) -> None:
    laptop.powercap.set("intel-rapl:0", 5_000_000_000)

    def reset() -> None:
        laptop.work(2.0)
        laptop.powercap.set("intel-rapl:0", 1000)

    assert "a counter or a clock jumped" in refusal(laptop.meter(), reset)


def test_a_zone_that_vanishes_in_the_window_is_an_error(laptop: Machine) -> None:
    def vanish() -> None:
        laptop.work(2.0)
        laptop.powercap.counter("intel-rapl:0").unlink()

    assert "the power zone is gone" in refusal(laptop.meter(), vanish)


def test_a_counter_that_is_no_number_is_an_error(laptop: Machine) -> None:
    def garble() -> None:
        laptop.work(2.0)
        laptop.powercap.counter("intel-rapl:0").write_text("-17\n")

    assert "holds '-17', must be a whole number up to" in refusal(laptop.meter(), garble)


def test_a_clock_that_goes_back_or_a_machine_that_sleeps_is_an_error(laptop: Machine) -> None:
    def back() -> None:
        laptop.work(2.0)
        laptop.time.work(-3.0)

    def sleep() -> None:
        laptop.work(2.0)
        laptop.time.slept_s += 30.0

    assert "the clock went back" in refusal(laptop.meter(), back)
    assert "the machine slept" in refusal(laptop.meter(), sleep)


# --- permission and absence -------------------------------------------------------------------------------


def test_a_counter_for_root_alone_is_named_with_the_ways_to_grant_it(laptop: Machine) -> None:
    laptop.powercap.deny("intel-rapl:0")
    with pytest.raises(MeterError) as refused:
        laptop.meter()
    told = str(refused.value)
    assert str(laptop.powercap.counter("intel-rapl:0")) in told
    for remedy in ("sudo chmod a+r", "udev rule", "CAP_DAC_READ_SEARCH"):
        assert remedy in told
    assert "\n" not in told


def test_a_right_that_is_taken_back_in_the_window_is_an_error(laptop: Machine) -> None:
    def work() -> None:
        laptop.work(2.0)
        laptop.powercap.deny("intel-rapl:0")

    assert "may be read by root alone" in refusal(laptop.meter(), work)


def test_a_machine_without_power_zones_is_refused_with_a_remedy(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            MeterError, match=r"no RAPL power zone.*modprobe intel_rapl_msr.*energy=estimated"
        ):
            RaplMeter(root=root)


@pytest.mark.parametrize("text", ["0", "many", ""])
def test_a_counter_whose_range_is_unknown_is_refused(laptop: Machine, text: str) -> None:
    (laptop.powercap.root / "intel-rapl:0" / "max_energy_range_uj").write_text(text)
    with pytest.raises(MeterError, match="where the counter wraps is unknown"):
        laptop.meter()


@pytest.mark.parametrize("bad", [{"min_window_s": 0.0}, {"max_w": -1.0}, {"max_w": float("nan")}])
def test_settings_that_make_no_sense_are_refused(laptop: Machine, bad: dict[str, float]) -> None:
    with pytest.raises(MeterError, match="must be above 0 and finite"):
        laptop.meter(**bad)


# --- other processes --------------------------------------------------------------------------------------


def test_the_share_of_other_processes_is_in_the_detail(laptop: Machine) -> None:
    meter = laptop.meter()
    alone = measured(meter, lambda: laptop.work(2.0))
    assert alone.detail["foreign_cpu_share"] == pytest.approx(0.0, abs=1e-9)
    shared = measured(meter, lambda: laptop.work(2.0, foreign_s=2.0))
    assert shared.detail["foreign_cpu_share"] == pytest.approx(0.5, abs=0.01)


def test_a_machine_that_others_use_gives_an_error_and_no_figure(laptop: Machine) -> None:
    with pytest.raises(MeterError, match="more than 5% of the CPU's work was other processes'"):
        compare(
            laptop.meter(),
            lambda: laptop.work(0.2, foreign_s=0.2),
            lambda: laptop.work(0.2),
            MeasurementProtocol(trials=2),
            clock=laptop.time,
            sleep=laptop.time.work,
        )


def test_a_stranger_in_one_trial_costs_that_trial_and_no_more(laptop: Machine) -> None:
    runs = iter([0.0] * 20 + [0.3] + [0.0] * 10_000)

    def sleep(seconds: float) -> None:
        laptop.work(seconds, watts=2.0)

    found = compare(
        laptop.meter(),
        lambda: laptop.work(0.2, foreign_s=next(runs)),
        lambda: laptop.work(0.1),
        MeasurementProtocol(trials=3),
        clock=laptop.time,
        sleep=sleep,
    )
    assert found.energy_ratio == pytest.approx(0.5)
    assert (found.trials, found.rejected, found.reliable) == (3, 1, True)


def test_cpu_time_that_the_system_hides_leaves_the_share_unknown(laptop: Machine) -> None:
    def work() -> None:
        laptop.time.work(1.0)
        laptop.powercap.spend(5.0)

    meter = laptop.meter()
    laptop.cpu.path.write_text("nonsense\n")
    assert "foreign_cpu_share" not in measured(meter, work).detail
    assert read_cpu_times(laptop.cpu.path.with_name("missing")) is None


def test_cpu_time_that_stands_still_while_this_process_works_says_nothing() -> None:
    assert foreign_share(CpuTimes(5.0, 1.0), CpuTimes(5.0, 3.0)) is None
    assert foreign_share(CpuTimes(5.0, 1.0), CpuTimes(5.0, 1.0)) == 0.0
    assert foreign_share(None, CpuTimes(5.0, 1.0)) is None


@given(own=st.floats(0, 100), foreign=st.floats(0, 100))
@settings(deadline=None, max_examples=100)
def test_a_share_is_between_nothing_and_everything(own: float, foreign: float) -> None:
    share = foreign_share(CpuTimes(7.0, 3.0), CpuTimes(7.0 + own + foreign, 3.0 + own))
    assert share is None or 0.0 <= share <= 1.0


def test_this_process_s_own_time_grows_as_it_works() -> None:
    before = own_cpu_s()
    sum(range(200_000))
    assert own_cpu_s() > before


def test_it_is_a_counter_meter_for_the_cpu_alone(laptop: Machine) -> None:
    meter = laptop.meter(min_window_s=0.4)
    assert isinstance(meter, EnergyMeter)
    assert isinstance(meter, CounterMeter)
    assert (meter.refresh_s, meter.min_window_s) == (0.001, 0.4)
    assert meter.covers("cpu")
    assert not meter.covers("cuda:0")
