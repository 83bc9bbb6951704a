"""Joules for benchmarks: measured where this machine has a counter, left out where it has none."""

from __future__ import annotations

import time
from collections.abc import Callable

from scripts.benchmarks import Row
from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.rapl import RaplMeter
from wattbit.energy.rejection import RejectionRules
from wattbit.energy.trial import Work
from wattbit.errors import MeterError

# A benchmark has many rows: what scatters is marked, not measured again.
_PROTOCOL = MeasurementProtocol(trials=3, rules=RejectionRules(attempts=1))


def find_counter() -> EnergyMeter | None:
    """The CPU's energy counter; None if it cannot be read here."""
    try:
        return RaplMeter()
    except MeterError:
        return None


def energy_columns(
    counter: EnergyMeter | None,
    reference: Work,
    candidate: Work,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Joules of one run of each and their ratio; empty cells where there is no counter or it fails."""
    columns: Row = {
        "reference_j": None,
        "native_j": None,
        "energy_ratio": None,
        "energy": "no counter" if counter is None else "",
    }
    if counter is None:
        return columns
    try:
        found = compare(counter, reference, candidate, _PROTOCOL, clock=clock)
    except MeterError as error:
        return columns | {"energy": f"failed: {error}"}
    return {
        "reference_j": found.reference_j,
        "native_j": found.candidate_j,
        "energy_ratio": found.energy_ratio,
        "energy": counter.provenance if found.reliable else f"{counter.provenance}, scatters",
    }
