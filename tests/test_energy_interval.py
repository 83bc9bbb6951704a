"""The interval of an energy ratio, idle power, and the confirmation of a plan."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from comparisons import compared
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.energy_comparison import Confirmation, EnergyComparison
from wattbit.energy.interleaved import compare, measure_idle_w
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.ratio_interval import ratio_interval, t_quantile, t_within


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
        lambda: machine.work(0.001),
        lambda: machine.work(0.001, share=0.7),
        MeasurementProtocol(window_s=0.1, trials=2),
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


def test_a_plan_is_confirmed_end_to_end_with_the_additive_model_s_error() -> None:
    confirmed = Confirmation(compared(FakeMachine(), candidate_s=5e-4), predicted_ratio=0.4)
    assert confirmed.measured.energy_ratio == pytest.approx(0.5)
    assert confirmed.error == pytest.approx(-0.2)
