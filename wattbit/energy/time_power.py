"""Energy as measured time x stated power (``estimated``), for machines whose energy cannot be read.

The wattage is stated by whoever runs it, never guessed here. It is taken as constant, so a ratio of two
energies is a ratio of two times: a format that draws more or less power per second goes unseen.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from wattbit.energy.meter import Energy
from wattbit.errors import MeterError
from wattbit.profile import Provenance

Clock = Literal["cpu", "wall"]
"""``cpu``: seconds all threads of this process spent on cores; ``wall``: seconds that passed."""

_NS_PER_S = 1e9


class TimePowerMeter:
    """An `EnergyMeter` that multiplies seconds by watts.

    Args:
        watts: Power while the clock runs: watts per busy core for ``cpu``, of the whole device for ``wall``.
        source: Where the wattage comes from; kept with every figure.
        clock: ``cpu`` counts CPU-seconds of this process, not of its children; ``wall`` counts elapsed time.
        device: What draws the power; None for this machine's CPU.
        cpu_ns: Reads the CPU clock, nanoseconds.
        wall_ns: Reads the wall clock, nanoseconds; monotonic.

    Raises:
        MeterError: If ``watts`` is not a positive number, ``source`` is empty or the clock is unknown.
    """

    __slots__ = ("_clock", "_cpu_ns", "_device", "_source", "_wall_ns", "_watts")

    def __init__(
        self,
        watts: float,
        source: str,
        clock: Clock = "cpu",
        device: str | None = None,
        *,
        cpu_ns: Callable[[], int] = time.process_time_ns,
        wall_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        number = isinstance(watts, int | float) and not isinstance(watts, bool)
        if not number or not math.isfinite(watts) or watts <= 0:
            raise MeterError(f"{watts!r} watts: must be a finite number above 0; state the device's power")
        if not isinstance(source, str) or not source.strip():
            raise MeterError(f"source {source!r} of {watts} watts is empty; say where the wattage comes from")
        if clock not in get_args(Clock):
            raise MeterError(f"unknown clock {clock!r}; choose from {', '.join(get_args(Clock))}")
        self._watts = float(watts)
        self._source = source
        self._clock: Clock = clock
        self._device = device or f"cpu: {cpu_name()}"
        self._cpu_ns = cpu_ns
        self._wall_ns = wall_ns

    @property
    def provenance(self) -> Provenance:
        """Always ``estimated``."""
        return "estimated"

    @property
    def device(self) -> str:
        """What draws the power."""
        return self._device

    def window(self) -> TimedWindow:
        """Open a window; it closes, and its result is ready, when the context is left."""
        return TimedWindow(self._read_ns, self._energy)

    def _read_ns(self) -> tuple[int, int]:
        """Elapsed time, and the time that is charged for."""
        wall_ns = self._wall_ns()
        return wall_ns, wall_ns if self._clock == "wall" else self._cpu_ns()

    def _energy(self, wall_ns: int, charged_ns: int) -> Energy:
        for name, passed_ns in (("wall", wall_ns), (self._clock, charged_ns)):
            if passed_ns < 0:
                raise MeterError(
                    f"the {name} clock went back by {-passed_ns} ns in the window; measure it again"
                )
            if passed_ns == 0:
                raise MeterError(
                    f"0 s on the {name} clock: window shorter than the clock's resolution; "
                    "repeat the work more often"
                )
        charged_s = charged_ns / _NS_PER_S
        return Energy(
            energy_j=charged_s * self._watts,
            seconds=wall_ns / _NS_PER_S,
            provenance=self.provenance,
            device=self._device,
            detail={
                "watts": self._watts,
                "clock": self._clock,
                "clock_seconds": charged_s,
                "source": self._source,
            },
        )


class TimedWindow:
    """A measurement window of `TimePowerMeter`; it measures once.

    Args:
        read_ns: Reads the clocks.
        energy: Turns what passed on them into energy.
    """

    __slots__ = ("_energy", "_failed", "_passed_ns", "_read_ns", "_start_ns")

    def __init__(self, read_ns: Callable[[], tuple[int, int]], energy: Callable[[int, int], Energy]) -> None:
        self._read_ns = read_ns
        self._energy = energy
        self._start_ns: tuple[int, int] | None = None
        self._passed_ns: tuple[int, int] | None = None
        self._failed = ""

    def __enter__(self) -> TimedWindow:
        if self._start_ns is not None:
            raise MeterError("this window was opened before; open another with meter.window()")
        self._start_ns = self._read_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = self._read_ns()
        if kind is not None:
            self._failed = kind.__name__
        elif self._start_ns is not None:
            self._passed_ns = (end_ns[0] - self._start_ns[0], end_ns[1] - self._start_ns[1])

    @property
    def result(self) -> Energy:
        """The energy spent between entry and exit.

        Raises:
            MeterError: Before exit, if the work raised, or if a clock stood still or went back.
        """
        if self._failed:
            raise MeterError(
                f"the work in the window raised {self._failed}; there is no energy for half a run"
            )
        if self._passed_ns is None:
            raise MeterError("the window has not closed yet; read its result after the with block")
        return self._energy(*self._passed_ns)


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name, from ``cpuinfo`` where there is one, else as the platform knows it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    models = (value.strip() for key, _, value in fields if key.strip() == "model name")
    return next(filter(None, models), "") or platform.processor() or platform.machine() or "unknown"
