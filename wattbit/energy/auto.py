"""Measure where the machine has a counter, and otherwise model the declared device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from wattbit.energy.counter import CounterMeter
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.rapl import RaplMeter
from wattbit.errors import MeterError

NamedMeter = tuple[str, Callable[[], EnergyMeter]]
"""A counter's name and what builds its meter, raising `MeterError` where the counter cannot be read."""


def choose_meter(
    candidates: Sequence[NamedMeter], fallback: DeviceModel
) -> tuple[EnergyMeter | DeviceModel, str]:
    """Build the first of ``candidates`` that can measure here; if none can, take ``fallback``.

    Only `MeterError` means "not here"; any other error is a bug and is not hidden.

    Returns:
        The source of energy figures, and one sentence that says which it is, and why none before it.
    """
    refused = []
    for name, build in candidates:
        try:
            meter = build()
        except MeterError as error:
            refused.append(f"{name}: {' '.join(str(error).split()).rstrip('.')}")
            continue
        return meter, f"Energy is {meter.provenance} by {name} on {meter.device}{_because(refused)}."
    why = _because(refused) or ", as no counter was looked for"
    return fallback, f"Energy is {fallback.provenance} for {fallback.device}{why}."


def counters(model_device: str = "cpu") -> tuple[NamedMeter, ...]:
    """The counters to look for, the best first: of NVIDIA's GPUs, then of the CPU.

    A counter that works but does not count the work on ``model_device`` (as torch names it: ``cpu``,
    ``cuda:0``) is refused: its joules would be those of an idle device.
    """
    number = int(model_device.partition(":")[2] or 0)
    kinds: tuple[tuple[str, str, Callable[[], CounterMeter]], ...] = (
        ("nvml", "cuda", lambda: NvmlMeter((number,))),
        ("rapl", "cpu", RaplMeter),
    )
    return tuple((name, _candidate(kind, build, model_device)) for name, kind, build in kinds)


def _candidate(kind: str, build: Callable[[], CounterMeter], model_device: str) -> Callable[[], EnergyMeter]:
    def make() -> EnergyMeter:
        if not model_device.startswith(kind):
            raise MeterError(f"the model runs on {model_device}, which it does not count")
        try:
            return build()
        except MeterError as error:
            # The remedy is for users who ask for this counter by name; here the reason is enough.
            raise MeterError(re.split(r"[:;] ", str(error))[0]) from None

    return make


def _because(refused: Sequence[str]) -> str:
    return f", as others cannot measure here ({'; '.join(refused)})" if refused else ""
