"""Energy above idle, and the confirmation of a plan."""

from __future__ import annotations

import pytest
from comparisons import compared
from fake_machine import FakeMachine, FakeMeter

from wattbit.energy.energy_comparison import Confirmation, EnergyComparison
from wattbit.energy.interleaved import compare, measure_idle_w
from wattbit.energy.measurement_protocol import MeasurementProtocol


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
