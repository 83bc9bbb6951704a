"""The measuring protocol: a ratio that drift does not move, from windows that are long enough."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
from comparisons import compared, interval
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.rejection import RejectionRules
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import MeterError


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


def disturbed(factor: float, max_cv: float = 0.03) -> EnergyComparison:
    """Nine trials; one run of the reference takes ``factor`` times as long as the others."""
    runs = iter([1.0] * 150 + [factor] + [1.0] * 10_000)
    machine = FakeMachine()
    return compare(
        FakeMeter(machine),
        lambda: machine.work(0.1 * next(runs)),
        lambda: machine.work(0.05),
        MeasurementProtocol(window_s=1.0, trials=9, rules=RejectionRules(max_cv)),
        clock=machine.clock,
    )


@pytest.mark.parametrize("factor", [5.0, 50.0])
def test_a_disturbed_trial_is_thrown_away_and_measured_again(factor: float) -> None:
    found = disturbed(factor)
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.energy_rel_std == pytest.approx(0.0, abs=1e-9)
    assert (found.trials, found.rejected, found.reliable) == (9, 1, True)


def test_a_disturbed_trial_that_is_kept_does_not_move_the_median() -> None:
    found = disturbed(15.0, max_cv=1.0)
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.energy_rel_std > 0.01
    assert (found.trials, found.rejected) == (9, 0)
    low, high = interval(found)
    assert low < 0.5 < high


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
        MeterError, match=f"{trials} trials give no spread, needs at least 2; raise energy.protocol.trials"
    ):
        compared(FakeMachine(), trials=trials)


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan, math.inf])
def test_a_window_that_cannot_be_filled_is_refused_instead_of_measured_for_ever(window_s: float) -> None:
    with pytest.raises(MeterError, match="cannot be filled, must be above 0 and finite"):
        compared(FakeMachine(), window_s=window_s)


def test_a_meter_that_fails_is_not_passed_over() -> None:
    with pytest.raises(MeterError, match="too short"):
        compared(FakeMachine(), window_s=0.1, shortest_s=10.0)


def test_unasked_a_meter_of_short_windows_gets_many_of_them_in_turn() -> None:
    machine, order = FakeMachine(), []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        machine.work(seconds)

    meter = FakeMeter(machine)
    found = compare(meter, lambda: work("A", 5e-4), lambda: work("B", 5e-4), clock=machine.clock)
    assert found.energy_ratio == pytest.approx(1.0)
    assert found.repeats * 5e-4 >= 0.002
    assert meter.windows == 4 * 4 * found.trials
    changes = sum(a != b for a, b in pairwise(order))
    assert changes >= 2 * 4 * found.trials


def test_work_that_fills_windows_by_itself_is_not_measured_many_times_over() -> None:
    machine = FakeMachine()
    meter = FakeMeter(machine)
    found = compare(meter, lambda: machine.work(0.5), lambda: machine.work(0.5), clock=machine.clock)
    assert (found.repeats, meter.windows) == (1, 4 * found.trials)


def test_of_many_short_windows_the_calmest_count() -> None:
    machine, chance = FakeMachine(), np.random.default_rng(0)

    def work(seconds: float) -> None:
        machine.work(seconds * (3.0 if chance.random() < 0.1 else 1.0))

    found = compare(FakeMeter(machine), lambda: work(4e-4), lambda: work(2e-4), clock=machine.clock)
    assert found.energy_ratio == pytest.approx(0.5, rel=0.02)
    assert found.reference_j == pytest.approx(4e-4, rel=0.02)
    low, high = interval(found)
    assert low <= found.energy_ratio <= high


def test_it_measures_with_a_real_meter() -> None:
    found = compare(
        TimePowerMeter(10.0, "a test"),
        lambda: sum(range(20000)),
        lambda: sum(range(10000)),
        MeasurementProtocol(trials=2),
    )
    assert found.energy_ratio > 0.0
    assert found.reference_j > 0.0


def test_two_comparisons_of_one_device_never_overlap() -> None:
    inside, most = [0], [0]

    def work() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        sum(range(2_000))
        inside[0] -= 1

    def measure() -> None:
        compare(
            TimePowerMeter(1.0, "a test", device="shared"),
            work,
            work,
            MeasurementProtocol(window_s=0.001, trials=2),
        )

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
