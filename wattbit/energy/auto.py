"""Measure where the machine has a counter, and otherwise model the declared device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattbit.energy.device_model import DeviceModel
from wattbit.energy.meter import EnergyMeter
from wattbit.errors import MeterError

Candidate = tuple[str, Callable[[], EnergyMeter]]
"""A counter's name and what builds its meter, raising `MeterError` where the counter cannot be read."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The source of energy figures that a run uses.

    Attributes:
        meter: A meter, or the model of a device.
        reason: One sentence for the first line of a run: which one it is, and why none before it.
    """

    meter: EnergyMeter | DeviceModel
    reason: str


def choose_meter(candidates: Sequence[Candidate], fallback: DeviceModel) -> Choice:
    """Build the first of ``candidates`` that can measure here; if none can, take ``fallback``.

    Only `MeterError` means "not here"; any other error is a bug and is not hidden.
    """
    refused = []
    for name, build in candidates:
        try:
            meter = build()
        except MeterError as error:
            refused.append(f"{name}: {' '.join(str(error).split()).rstrip('.')}")
            continue
        return Choice(meter, f"Energy is {meter.provenance} by {name} on {meter.device}{_because(refused)}.")
    why = _because(refused) or ", as no counter was looked for"
    return Choice(fallback, f"Energy is {fallback.provenance} for {fallback.device}{why}.")


def _because(refused: Sequence[str]) -> str:
    return f", as others cannot measure here ({'; '.join(refused)})" if refused else ""
