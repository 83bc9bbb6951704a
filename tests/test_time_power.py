"""Time x power: seconds times watts, and a refusal wherever that would be a wrong figure."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.meter import EnergyMeter
from wattbit.energy.time_power import TimePowerMeter, cpu_name
from wattbit.errors import MeterError

SECOND = 10**9


def clock(*readings_ns: int) -> Callable[[], int]:
    return iter(readings_ns).__next__


def meter(**settings_: Any) -> TimePowerMeter:
    return TimePowerMeter(**{"watts": 10.0, "source": "a data sheet", "device": "toy", **settings_})


def test_cpu_clock_charges_the_seconds_spent_on_cores() -> None:
    timed = meter(clock="cpu", cpu_ns=clock(5 * SECOND, 8 * SECOND), wall_ns=clock(0, 2 * SECOND))
    with timed.window() as window:
        pass
    energy = window.result
    assert energy.energy_j == 30.0
    assert energy.seconds == 2.0
    assert energy.provenance == "estimated"
    assert energy.device == "toy"
    assert energy.detail == {"watts": 10.0, "clock": "cpu", "clock_seconds": 3.0, "source": "a data sheet"}


def test_wall_clock_charges_the_seconds_that_passed_and_reads_no_other() -> None:
    timed = meter(clock="wall", cpu_ns=clock(), wall_ns=clock(SECOND, 3 * SECOND))
    with timed.window() as window:
        pass
    assert window.result.energy_j == 20.0
    assert window.result.seconds == 2.0
    assert window.result.detail["clock"] == "wall"


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 10**15), st.floats(1e-3, 1e4))
def test_energy_is_proportional_to_time_and_power(passed_ns: int, watts: float) -> None:
    timed = meter(watts=watts, clock="wall", wall_ns=clock(7, 7 + passed_ns))
    with timed.window() as window:
        pass
    assert window.result.energy_j == pytest.approx(passed_ns * 1e-9 * watts)
    assert window.result.energy_j > 0


def test_it_is_an_energy_meter_and_works_on_the_real_clocks() -> None:
    timed = TimePowerMeter(watts=5.0, source="a data sheet")
    assert isinstance(timed, EnergyMeter)
    assert timed.provenance == "estimated"
    assert timed.device.startswith("cpu: ")
    assert timed.device != "cpu: "
    with timed.window() as window:
        sum(range(200_000))
    assert window.result.energy_j > 0
    assert window.result.seconds > 0


@pytest.mark.parametrize("watts", [0, -1.0, math.nan, math.inf, True, "10", None])
def test_power_that_is_no_positive_number_is_refused(watts: object) -> None:
    with pytest.raises(MeterError, match="above 0"):
        meter(watts=watts)


@pytest.mark.parametrize("source", ["", "  ", None])
def test_power_without_a_source_is_refused(source: object) -> None:
    with pytest.raises(MeterError, match="say where the wattage comes from"):
        meter(source=source)


def test_an_unknown_clock_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterError, match="unknown clock 'gpu'; choose from cpu, wall"):
        meter(clock="gpu")


def test_a_result_read_before_the_window_closed_is_refused() -> None:
    window = meter().window()
    with pytest.raises(MeterError, match="not closed"):
        _ = window.result
    with window, pytest.raises(MeterError, match="not closed"):
        _ = window.result


def test_an_empty_window_is_an_error_never_zero_joules() -> None:
    timed = meter(clock="cpu", cpu_ns=clock(4, 4), wall_ns=clock(0, 100))
    with timed.window() as window:
        pass
    with pytest.raises(MeterError, match="window shorter than the clock's resolution; repeat the work"):
        _ = window.result


@pytest.mark.parametrize("name", ["cpu", "wall"])
def test_a_clock_that_goes_back_is_an_error(name: str) -> None:
    clocks = {"cpu": clock(0, 5), "wall": clock(0, 5), name: clock(5, 3)}
    timed = meter(clock="cpu", cpu_ns=clocks["cpu"], wall_ns=clocks["wall"])
    with timed.window() as window:
        pass
    with pytest.raises(MeterError, match=f"the {name} clock went back by 2 ns"):
        _ = window.result


def test_a_window_measures_once() -> None:
    window = meter().window()
    with window:
        with pytest.raises(MeterError, match="opened before"), window:
            pass
        sum(range(200_000))
    assert window.result.energy_j > 0
    with pytest.raises(MeterError, match="opened before"), window:
        pass


def test_windows_of_one_meter_do_not_disturb_each_other() -> None:
    timed = meter(clock="wall", wall_ns=clock(0, 1 * SECOND, 3 * SECOND, 6 * SECOND))
    with timed.window() as outer, timed.window() as inner:
        pass
    assert (outer.result.energy_j, inner.result.energy_j) == (60.0, 20.0)


def test_work_that_raises_is_not_hidden_and_has_no_energy() -> None:
    window = meter().window()
    with pytest.raises(ValueError, match="broken"), window:
        raise ValueError("broken")
    with pytest.raises(MeterError, match="raised ValueError"):
        _ = window.result


def test_every_message_is_one_line() -> None:
    for settings_ in ({"watts": 0}, {"source": ""}, {"clock": "x"}):
        with pytest.raises(MeterError) as error:
            meter(**settings_)
        assert "\n" not in str(error.value)


def test_the_cpu_is_named_as_the_system_names_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: \nmodel name\t: Fast CPU: v2 @ 3 GHz\nmodel\t: 1\n")
    assert cpu_name(cpuinfo) == "Fast CPU: v2 @ 3 GHz"


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing")
    empty = tmp_path / "cpuinfo"
    empty.write_text("")
    assert cpu_name(empty)
