"""Which trials are thrown away: figures that are wrong, noise, drift."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from comparisons import interval
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import Energy
from wattbit.energy.rejection import RejectionRules, cv_of_pair, rejection
from wattbit.errors import ConfigError


def window(energy_j: float = 1.0, seconds: float = 1.0, **detail: float | str) -> Energy:
    return Energy(energy_j, seconds, "measured", "fake", detail)


def verdict(*windows: Energy, rules: RejectionRules | None = None) -> tuple[str, bool] | None:
    found = rejection(windows, [(windows[0], windows[-1])], rules or RejectionRules())
    return None if found is None else (found.cause, found.noise)


def test_a_good_trial_is_kept() -> None:
    calm: dict[str, Any] = {
        "temperature_begin_c": 50.0,
        "temperature_end_c": 54.0,
        "throttle": "",
        "foreign_processes": 0.0,
    }
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
        MeasurementProtocol(window_s=0.1, trials=25),
        clock=machine.clock,
    )
    assert found.trials == 50
    assert found.reliable
    assert interval(found)[1] / found.energy_ratio - 1.0 <= 0.03


def test_a_machine_that_never_calms_down_gives_figures_that_say_so() -> None:
    machine, chance = FakeMachine(), np.random.default_rng(1)
    found = compare(
        FakeMeter(machine),
        lambda: machine.work(1.0 + 0.5 * chance.random()),
        lambda: machine.work(0.5 + 0.25 * chance.random()),
        MeasurementProtocol(window_s=0.1, trials=5),
        clock=machine.clock,
    )
    assert not found.reliable
    assert found.trials > 5
    low, high = interval(found)
    assert low < 0.5 < high


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
