"""Comparisons on a made-up machine."""

from __future__ import annotations

from fake_machine import FakeMachine, FakeMeter

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol


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
        MeasurementProtocol(window_s=window_s, trials=trials),
        clock=machine.clock,
    )


def interval(found: EnergyComparison) -> tuple[float, float]:
    """The interval of the energy ratio, which was measured."""
    assert found.ratio_low is not None
    assert found.ratio_high is not None
    return found.ratio_low, found.ratio_high
