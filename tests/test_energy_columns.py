"""Joules in the tables of benchmarks, where there is a counter."""

from __future__ import annotations

import pytest
from fake_machine import FakeMachine, FakeMeter

from scripts.benchmarks import energy_columns as energy
from wattbit.errors import MeterError


def test_a_counter_gives_measured_joules() -> None:
    machine = FakeMachine(watts=lambda seconds: 10.0)
    meter = FakeMeter(machine)
    columns = energy.energy_columns(
        meter, lambda: machine.work(0.5), lambda: machine.work(0.5, share=0.25), clock=machine.clock
    )
    assert columns["energy"] == "measured"
    assert columns["energy_ratio"] == pytest.approx(0.25)
    assert columns["reference_j"] == pytest.approx(5.0)
    assert columns["native_j"] == pytest.approx(1.25)


def test_a_counter_that_fails_gives_no_joules_and_says_so() -> None:
    machine = FakeMachine()
    meter = FakeMeter(machine, shortest_s=1e9)
    columns = energy.energy_columns(
        meter, lambda: machine.work(0.5), lambda: machine.work(0.5), clock=machine.clock
    )
    assert columns["energy_ratio"] is None
    assert str(columns["energy"]).startswith("failed: ")


def test_without_a_counter_joules_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MeterError("no counter here; take another machine")

    monkeypatch.setattr(energy, "RaplMeter", refuse)
    assert energy.find_counter() is None
    columns = energy.energy_columns(None, lambda: None, lambda: None)
    assert columns == {"reference_j": None, "native_j": None, "energy_ratio": None, "energy": "no counter"}
