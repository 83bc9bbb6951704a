"""Measuring on a GPU: works in rotation, what fails or is missing is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_machine import FakeMachine, FakeMeter
from gpu_stand_in import NO_METER, cpu_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.gpu.gpu_measurer import GpuMeasurer
from scripts.gpu.machine import idle_power_w
from wattbit.energy.meter import Energy, Window
from wattbit.errors import MeterError


def _measurer(
    meter: Any, fake: FakeMachine, *, window_s: float = 1.0, trials: int = 2, problem: str = NO_METER
) -> GpuMeasurer:
    return GpuMeasurer(
        cpu_machine(meter, problem),
        window_s=window_s,
        trials=trials,
        idle_w=1.0,
        sleep=lambda s: None,
        clock=fake.clock,
    )


def _works(fake: FakeMachine) -> dict[str, Callable[[], object]]:
    return {
        "fp32": lambda: fake.work(0.1),
        "half": lambda: fake.work(0.05),
        "cool": lambda: fake.work(0.1, share=0.25),
    }


def test_a_rotation_gives_time_and_energy_of_every_work_and_ratios_to_the_first() -> None:
    fake = FakeMachine(watts=lambda seconds: 20.0)
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=1e9)
    assert list(rows) == ["fp32", "half", "cool"]
    assert rows["fp32"]["energy_ratio"] == rows["fp32"]["speedup"] == 1.0
    assert rows["half"]["speedup"] == pytest.approx(2.0)
    assert rows["half"]["energy_ratio"] == pytest.approx(0.5)
    assert rows["cool"]["speedup"] == pytest.approx(1.0)
    assert rows["cool"]["energy_ratio"] == pytest.approx(0.25)
    assert rows["cool"]["energy_j"] == pytest.approx(0.5)
    assert rows["cool"]["watts"] == pytest.approx(5.0)
    assert rows["cool"]["energy_above_idle_j"] == pytest.approx(0.4)
    assert all(row["provenance"] == "measured" and row["cautions"] == [] for row in rows.values())


@given(drift=st.floats(-0.002, 0.002), windows=st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_power_that_drifts_steadily_favours_no_work(drift: float, windows: int) -> None:
    fake = FakeMachine(watts=lambda seconds: 20.0 * (1.0 + drift * seconds))
    works = {str(number): lambda: fake.work(0.1) for number in range(windows)}
    rows = _measurer(FakeMeter(fake), fake).rotate(works, left_s=1e9)
    assert all(row["energy_ratio"] == pytest.approx(1.0, rel=1e-6) for row in rows.values())


def test_a_work_that_fails_loses_no_other() -> None:
    fake = FakeMachine()

    def fail() -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    rows = _measurer(FakeMeter(fake), fake).rotate({**_works(fake), "fp8": fail}, left_s=1e9)
    assert rows["fp8"] == {"error": "RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"}
    assert rows["half"]["energy_ratio"] == pytest.approx(0.5)


def test_a_reference_that_fails_leaves_ratios_to_the_next_work() -> None:
    fake = FakeMachine()
    rows = _measurer(FakeMeter(fake), fake).rotate({"fp32": lambda: 1 / 0, **_works(fake)}, left_s=1e9)
    assert rows["fp32"]["speedup"] == 1.0
    only_failing = _measurer(FakeMeter(fake), fake).rotate({"fp32": lambda: 1 / 0}, left_s=1e9)
    assert set(only_failing["fp32"]) == {"error"}


def test_a_meter_that_refuses_leaves_times_and_is_asked_no_more_after_three_refusals() -> None:
    fake = FakeMachine()
    meter = FakeMeter(fake, shortest_s=1e9)
    measurer = _measurer(meter, fake)
    for attempt in range(5):
        before = meter.windows
        rows = measurer.rotate(_works(fake), left_s=1e9)
        assert rows["half"]["provenance"] == "time only"
        assert rows["half"]["speedup"] == pytest.approx(2.0)
        assert "energy_j" not in rows["half"]
        assert (meter.windows > before) is (attempt < 3)
    assert rows["half"]["energy_problem"] == "the meter failed 3 times in a row"


def test_energy_for_which_there_is_no_time_is_left_out_and_says_so() -> None:
    fake = FakeMachine()
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=5.0)
    assert rows["half"]["provenance"] == "time only"
    assert rows["half"]["energy_problem"] == "energy needs 13 s, 5 are left"


def test_a_rotation_takes_no_longer_than_it_was_granted() -> None:
    fake = FakeMachine()
    left_s = 13.3
    start = fake.seconds
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=left_s)
    assert rows["half"]["provenance"] == "measured"
    assert fake.seconds - start <= 1.25 * left_s


class _Spoiled(FakeMeter):
    """Its windows say that another process used the device."""

    def window(self) -> Any:
        outer = super().window

        class Spoiled:
            def __init__(self, window: Window) -> None:
                self._window = window

            @property
            def result(self) -> Energy:
                return replace(self._window.result, detail={"foreign_processes": 1.0})

        @contextmanager
        def spoiled() -> Iterator[Spoiled]:
            with outer() as window:
                yield Spoiled(window)

        return spoiled()


def test_what_the_protocol_would_throw_away_is_kept_with_a_caution() -> None:
    fake = FakeMachine()
    rows = _measurer(_Spoiled(fake), fake).rotate(_works(fake), left_s=1e9)
    assert rows["half"]["cautions"] == ["1 foreign processes on the device"]


def test_idle_power_is_none_where_it_cannot_be_read() -> None:
    assert idle_power_w(cpu_machine(), seconds=0.01) is None

    class Failing:
        device, provenance = "gpu", "measured"

        def window(self) -> Any:
            raise MeterError("lost")

    assert idle_power_w(cpu_machine(Failing()), seconds=0.01) is None
