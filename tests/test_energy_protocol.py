"""The measuring protocol: a ratio that drift does not move, from windows that are long enough."""

from __future__ import annotations

import math
import statistics
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.energy_comparison import Confirmation
from wattbit.energy.meter import Energy, EnergyMeter
from wattbit.energy.protocol import (
    EnergyComparison,
    RejectionRules,
    compare,
    confirm_plan,
    measure_idle_w,
    metering_overhead_s,
)
from wattbit.energy.ratio_interval import ratio_interval, t_quantile, t_within
from wattbit.energy.rejection import cv_of_pair, rejection
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import ConfigError, MeterError


def compared(
    machine: FakeMachine,
    reference_s: float = 1e-3,
    candidate_s: float = 1e-3,
    share: float = 1.0,
    trials: int = 3,
    window_s: float = 0.1,
    shortest_s: float = 0.0,
) -> EnergyComparison:
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


def disturbed(factor: float, rules: RejectionRules | None = None) -> EnergyComparison:
    """Nine trials; one run of the reference takes ``factor`` times as long as the others."""
    runs = iter([1.0] * 150 + [factor] + [1.0] * 10_000)
    machine = FakeMachine()
    return compare(
        FakeMeter(machine),
        lambda: machine.work(0.1 * next(runs)),
        lambda: machine.work(0.05),
        window_s=1.0,
        trials=9,
        clock=machine.clock,
        rules=rules,
    )


@pytest.mark.parametrize("factor", [5.0, 50.0])
def test_a_disturbed_trial_is_thrown_away_and_measured_again(factor: float) -> None:
    found = disturbed(factor)
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.energy_rel_std == pytest.approx(0.0, abs=1e-9)
    assert (found.trials, found.rejected, found.reliable) == (9, 1, True)


def test_a_disturbed_trial_that_is_kept_does_not_move_the_median() -> None:
    found = disturbed(15.0, RejectionRules(max_cv=1.0))
    assert found.energy_ratio == pytest.approx(0.5)
    assert found.energy_rel_std > 0.01
    assert (found.trials, found.rejected) == (9, 0)
    assert found.ratio_low < 0.5 < found.ratio_high


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


# --- what suits the meter ---------------------------------------------------------------------------------


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
    assert found.ratio_low <= found.energy_ratio <= found.ratio_high


def test_it_measures_with_a_real_meter() -> None:
    found = compare(
        TimePowerMeter(10.0, "a test"), lambda: sum(range(20_000)), lambda: sum(range(10_000)), trials=2
    )
    assert found.energy_ratio > 0.0
    assert found.reference_j > 0.0


# --- rejection --------------------------------------------------------------------------------------------


def window(energy_j: float = 1.0, seconds: float = 1.0, **detail: float | str) -> Energy:
    return Energy(energy_j, seconds, "measured", "fake", detail)


def verdict(*windows: Energy, rules: RejectionRules | None = None) -> tuple[str, bool] | None:
    found = rejection(windows, [(windows[0], windows[-1])], rules or RejectionRules())
    return None if found is None else (found.cause, found.noise)


def test_a_good_trial_is_kept() -> None:
    calm = {"temperature_begin_c": 50.0, "temperature_end_c": 54.0, "throttle": "", "foreign_processes": 0.0}
    assert verdict(window(**calm), window(**calm, foreign_cpu_share=0.04)) is None


@pytest.mark.parametrize(
    ("spoilt", "cause"),
    [
        ({"throttle": "HwSlowdown of GPU 0"}, "throttled (HwSlowdown of GPU 0)"),
        ({"temperature_begin_c": 50.0, "temperature_end_c": 55.5}, "temperature moved by more than 5 °C"),
        ({"foreign_processes": 2.0}, "2 foreign processes on the device"),
        ({"foreign_cpu_share": 0.06}, "more than 5% of the CPU's work was other processes'"),
    ],
)
def test_a_trial_whose_figures_are_wrong_is_thrown_away_for_good(spoilt: dict[str, Any], cause: str) -> None:
    assert verdict(window(), window(**spoilt), window()) == (cause, False)


def test_temperature_that_drifts_from_window_to_window_is_seen() -> None:
    first = window(temperature_begin_c=50.0, temperature_end_c=53.0)
    last = window(temperature_begin_c=53.0, temperature_end_c=56.0)
    assert verdict(first, last) == ("temperature moved by more than 5 °C", False)


def test_windows_that_disagree_are_noise() -> None:
    assert verdict(window(1.0), window(1.04)) is None
    assert verdict(window(1.0), window(1.05)) == ("windows of the same work differ by a CV above 3.0%", True)
    assert verdict(window(1.0), window(1.05), rules=RejectionRules(max_cv=0.05)) is None


def test_a_clock_that_jumps_ahead_costs_the_trial() -> None:
    assert verdict(window(1.0, 1.0), window(1.0, 2.5)) == (
        "windows of the same work differ by more than 2 times in length",
        True,
    )


@given(a=st.floats(1e-9, 1e9), b=st.floats(1e-9, 1e9))
@settings(deadline=None, max_examples=50)
def test_the_cv_of_two_values_is_their_standard_deviation_over_their_mean(a: float, b: float) -> None:
    assert cv_of_pair(a, b) == pytest.approx(statistics.stdev([a, b]) / statistics.fmean([a, b]), abs=1e-9)


def test_many_trials_that_scatter_a_little_are_as_good_as_few_that_do_not() -> None:
    machine, chance = FakeMachine(), np.random.default_rng(2)
    found = compare(
        FakeMeter(machine),
        lambda: machine.work(1.0 + 0.15 * chance.random()),
        lambda: machine.work(0.5 + 0.075 * chance.random()),
        window_s=0.1,
        trials=25,
        clock=machine.clock,
    )
    assert found.trials == 50
    assert found.reliable
    assert found.ratio_high / found.energy_ratio - 1.0 <= 0.03


def test_a_machine_that_never_calms_down_gives_figures_that_say_so() -> None:
    machine, chance = FakeMachine(), np.random.default_rng(1)
    found = compare(
        FakeMeter(machine),
        lambda: machine.work(1.0 + 0.5 * chance.random()),
        lambda: machine.work(0.5 + 0.25 * chance.random()),
        window_s=0.1,
        trials=5,
        clock=machine.clock,
    )
    assert not found.reliable
    assert found.trials > 5
    assert found.ratio_low < 0.5 < found.ratio_high


@pytest.mark.parametrize(
    "bad",
    [
        {"max_cv": 0.0},
        {"max_cv": math.nan},
        {"max_drift_c": -1.0},
        {"max_foreign_share": math.inf},
        {"attempts": 0},
        {"confidence": 1.0},
        {"confidence": 0.0},
    ],
)
def test_rules_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"energy rule {next(iter(bad))} is "):
        RejectionRules(**bad)


def test_two_comparisons_of_one_device_never_overlap() -> None:
    inside, most = [0], [0]

    def work() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        sum(range(2_000))
        inside[0] -= 1

    def measure() -> None:
        compare(TimePowerMeter(1.0, "a test", device="shared"), work, work, window_s=1e-3, trials=2)

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


# --- interval, idle, confirmation -------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(0.01, 0.995))
@settings(deadline=None, max_examples=100)
def test_student_s_t_is_scipy_s(degrees: int, level: float) -> None:
    from scipy.stats import t

    expected = t.ppf((1.0 + level) / 2.0, degrees)
    assert t_quantile(level, degrees) == pytest.approx(expected, rel=1e-8)
    assert t_within(expected, degrees) == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("trials", [2, 4, 5, 7])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(trials: int) -> None:
    chance = np.random.default_rng(trials)
    held = 0
    for _ in range(1_000):
        ratios = [math.exp(chance.normal(-0.7, 0.05)) for _ in range(trials)]
        low, high = ratio_interval(statistics.median(ratios), ratios, 0.95)
        held += low <= math.exp(-0.7) <= high
    assert held >= 930


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=9))
@settings(deadline=None, max_examples=50)
def test_the_interval_is_positive_and_holds_the_median(ratios: list[float]) -> None:
    middle = statistics.median(ratios)
    low, high = ratio_interval(middle, ratios, 0.95)
    assert 0.0 <= low <= middle * (1 + 1e-12)
    assert high >= middle * (1 - 1e-12)


def test_energy_above_idle_is_what_the_idle_device_would_not_have_drawn() -> None:
    machine = FakeMachine(lambda seconds: 10.0)
    found = compare(
        FakeMeter(machine),
        lambda: machine.work(1e-3),
        lambda: machine.work(1e-3, share=0.7),
        window_s=0.1,
        trials=2,
        clock=machine.clock,
        idle_w=4.0,
    )
    assert found.energy_ratio == pytest.approx(0.7)
    assert found.net_reference_j == pytest.approx(6e-3)
    assert found.net_candidate_j == pytest.approx(3e-3)
    assert found.net_ratio == pytest.approx(0.5)


def test_without_idle_power_or_above_it_nothing_is_claimed() -> None:
    machine = FakeMachine()
    found = compared(machine)
    assert (found.idle_w, found.net_reference_j, found.net_candidate_j, found.net_ratio) == (None,) * 4
    too_high = EnergyComparison(0.5, 0.0, 1.0, 0.5, 1.0, 0.5, 2, 1, idle_w=1.0)
    assert too_high.net_ratio is None


def test_idle_power_is_measured_with_the_same_meter_while_nothing_runs() -> None:
    machine = FakeMachine(lambda seconds: 3.0)
    assert measure_idle_w(FakeMeter(machine), 2.0, sleep=machine.work) == pytest.approx(3.0)


def test_the_time_that_metering_takes_is_that_of_opening_and_closing_a_window() -> None:
    machine, turns = FakeMachine(), iter([0.0, 1.0, 5.0, 7.0, 8.0, 11.0])
    meter = FakeMeter(machine)
    assert metering_overhead_s(meter, 3, turns.__next__) == 2.0
    assert meter.windows == 3
    assert metering_overhead_s(TimePowerMeter(10.0, "a test"), 3) > 0.0


def test_a_plan_is_confirmed_end_to_end_with_the_additive_model_s_error() -> None:
    confirmed = Confirmation(compared(FakeMachine(), candidate_s=5e-4), predicted_ratio=0.4)
    assert confirmed.measured.energy_ratio == pytest.approx(0.5)
    assert confirmed.error == pytest.approx(-0.2)


def test_a_plan_is_confirmed_with_a_real_meter() -> None:
    confirmed = confirm_plan(
        TimePowerMeter(10.0, "a test"), lambda: sum(range(20_000)), lambda: sum(range(10_000)), 0.5, trials=2
    )
    assert confirmed.error == pytest.approx(0.5 / confirmed.measured.energy_ratio - 1.0)
