"""What every energy meter is: a window that is opened, closed, and then holds a result with provenance."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from wattbit.profile import Provenance


@dataclass(frozen=True, slots=True)
class Energy:
    """An amount of energy and where the figure comes from.

    Attributes:
        energy_j: Joules; positive, never 0 for "unknown".
        seconds: Length of the window on a monotonic clock.
        provenance: How the figure came to be.
        device: The device it holds for, such as ``"cpu: AMD EPYC"`` or a device table's name.
        detail: What a reader needs to rebuild the figure (power, zones, counts).
    """

    energy_j: float
    seconds: float
    provenance: Provenance
    device: str
    detail: Mapping[str, str | float] = field(default_factory=dict)


class Window(Protocol):
    """An open or closed measurement window."""

    @property
    def result(self) -> Energy:
        """The energy spent between entry and exit; raises `MeterError` before exit or if the meter failed."""


@runtime_checkable
class EnergyMeter(Protocol):
    """Measures the energy of what runs inside a window: ``with meter.window() as w: ...; w.result``.

    A meter that cannot measure raises `MeterError` with the remedy. It never returns 0.
    """

    @property
    def provenance(self) -> Provenance:
        """What kind of figure this meter gives."""

    @property
    def device(self) -> str:
        """The device whose energy this meter gives."""

    def window(self) -> AbstractContextManager[Window]:
        """Open a window; it closes, and its result is ready, when the context is left."""
