"""Joules for benchmarks: measured where this machine has a counter, left out where it has none."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benches import Cell
from wattbit.energy.meter import EnergyMeter


def find_counter() -> EnergyMeter | None:
    return None


def energy_columns(
    counter: EnergyMeter | None, reference: Callable[[], object], candidate: Callable[[], object]
) -> dict[str, Cell]:
    return {}
