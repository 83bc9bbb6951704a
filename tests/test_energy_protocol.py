"""The measuring protocol: a ratio that drift does not move, from windows that are long enough."""

from __future__ import annotations

import math

import pytest
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.meter import EnergyMeter
from wattbit.energy.protocol import Comparison, compare
from wattbit.errors import MeterError


def compared(
    machine: FakeMachine,
    reference_s: float = 1e-3,
    candidate_s: float = 1e-3,
    share: float = 1.0,
    trials: int = 3,
    window_s: float = 0.1,
    shortest_s: float = 0.0,
) -> Comparison:
    return compare(
        FakeMeter(machine, shortest_s),
        lambda: machine.work(reference_s),
        lambda: machine.work(candidate_s, share),
        window_s=window_s,
        trials=trials,
        clock=machine.clock,
    )


def test_the_fake_meter_is_a_meter() -> None:
    assert isinstance(FakeMeter(FakeMachine()), EnergyMeter)


def test_a_candidate_that_takes_half_the_time_takes_half_the_energy() -> None:
    found = compared(FakeMachine(), candidate_s=5e-4)
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.reference_j == pytest.approx(1e-3)
    assert found.candidate_j == pytest.approx(5e-4)
    assert found.reference_s == pytest.approx(1e-3)
    assert found.candidate_s == pytest.approx(5e-4)
    assert found.energy_rel_std == pytest.approx(0.0, abs=1e-9)
    assert found.trials == 3


@given(
    drift=st.floats(-0.9, 10.0),
    candidate_s=st.floats(2e-4, 5e-3),
    share=st.floats(0.1, 2.0),
    trials=st.integers(2, 5),
)
@settings(deadline=None, max_examples=40)
def test_power_that_drifts_steadily_does_not_move_the_ratio(
    drift: float, candidate_s: float, share: float, trials: int
) -> None:
    # Power changes by the factor 1 + drift in thirty seconds; the trials take less.
    machine = FakeMachine(lambda seconds: 10.0 * (1.0 + drift * seconds / 30.0))
    found = compared(machine, candidate_s=candidate_s, share=share, trials=trials)
    assert found.energy_ratio == pytest.approx(share * candidate_s / 1e-3, rel=1e-6)


def test_measuring_one_after_the_other_would_have_been_fooled_by_that_drift() -> None:
    machine = FakeMachine(lambda seconds: 10.0 * (1.0 + seconds))
    start = machine.joules
    machine.work(1.0)
    first = machine.joules - start
    machine.work(1.0)
    assert machine.joules - start - first > 1.5 * first


def test_one_disturbed_trial_does_not_move_the_median() -> None:
    trials = iter([1.0] * 100 + [50.0] + [1.0] * 10_000)
    machine = FakeMachine()
    found = compare(
        FakeMeter(machine),
        lambda: machine.work(0.1 * next(trials)),
        lambda: machine.work(0.05),
        window_s=1.0,
        trials=9,
        clock=machine.clock,
    )
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.energy_rel_std > 0.01


def test_windows_are_filled_even_where_the_meter_cannot_read_shorter_ones() -> None:
    machine = FakeMachine()
    found = compared(machine, reference_s=1e-4, candidate_s=1e-4, window_s=0.5, shortest_s=0.49)
    assert found.repeats >= 5_000
    assert found.energy_ratio == pytest.approx(1.0)


def test_the_faster_work_decides_how_often_both_are_repeated() -> None:
    assert compared(FakeMachine(), reference_s=0.1, candidate_s=0.01, window_s=1.0).repeats == 100


def test_work_longer_than_a_window_runs_once() -> None:
    assert compared(FakeMachine(), reference_s=9.0, candidate_s=9.0, window_s=1.0).repeats == 1


@pytest.mark.parametrize("trials", [-1, 0, 1])
def test_too_few_trials_are_refused(trials: int) -> None:
    with pytest.raises(
        MeterError, match=f"{trials} trials give no spread, needs at least 2; raise energy.trials"
    ):
        compared(FakeMachine(), trials=trials)


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan, math.inf])
def test_a_window_that_cannot_be_filled_is_refused_instead_of_measured_for_ever(window_s: float) -> None:
    with pytest.raises(MeterError, match="cannot be filled, must be above 0 and finite"):
        compared(FakeMachine(), window_s=window_s)


def test_a_meter_that_fails_is_not_passed_over() -> None:
    with pytest.raises(MeterError, match="too short"):
        compared(FakeMachine(), window_s=0.1, shortest_s=10.0)
