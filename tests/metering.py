"""Metering a piece of fake work: what a meter counts, or what it refuses with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wattbit.energy.meter import Energy, EnergyMeter
from wattbit.errors import MeterError


def measured(meter: EnergyMeter, work: Callable[[], object]) -> Energy:
    """The energy of ``work``."""
    with meter.window() as window:
        work()
    return window.result


def refusal(meter: EnergyMeter, work: Callable[[], object]) -> str:
    """What the meter says both when the window closes and when its result is asked for."""
    with pytest.raises(MeterError) as at_exit, meter.window() as window:
        work()
    with pytest.raises(MeterError) as at_result:
        _ = window.result
    assert str(at_exit.value) == str(at_result.value)
    assert "\n" not in str(at_exit.value)
    return str(at_exit.value)
