"""A machine whose time passes only when it works, with a meter that reads what it drew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wattbit.energy.meter import Energy
from wattbit.errors import MeterError
from wattbit.profile import Provenance


class FakeMachine:
    """Runs fake work; its power may drift with time.

    Args:
        watts: Power at a time, seconds.
    """

    def __init__(self, watts: Callable[[float], float] = lambda seconds: 1.0) -> None:
        self.watts = watts
        self.seconds = 0.0
        self.joules = 0.0

    def clock(self) -> float:
        """The time, seconds."""
        return self.seconds

    def work(self, seconds: float, share: float = 1.0) -> None:
        """Be busy for ``seconds``, at ``share`` of the power."""
        # The midpoint rule is exact for power that is linear in time.
        self.joules += share * self.watts(self.seconds + seconds / 2) * seconds
        self.seconds += seconds


class FakeWindow:
    """A window of `FakeMeter`."""

    def __init__(self, meter: FakeMeter) -> None:
        self._meter = meter
        self._start = meter.machine.seconds, meter.machine.joules

    @property
    def result(self) -> Energy:
        """What the machine drew since the window was opened."""
        machine = self._meter.machine
        seconds, joules = machine.seconds - self._start[0], machine.joules - self._start[1]
        if seconds < self._meter.shortest_s:
            raise MeterError(f"window of {seconds} s is too short; repeat the work")
        return Energy(joules, seconds, self._meter.provenance, self._meter.device)


class FakeMeter:
    """Reads a `FakeMachine`; refuses windows that are shorter than ``shortest_s``."""

    device = "fake"

    def __init__(
        self, machine: FakeMachine, shortest_s: float = 0.0, provenance: Provenance = "measured"
    ) -> None:
        self.machine = machine
        self.shortest_s = shortest_s
        self.provenance = provenance
        self.windows = 0

    @contextmanager
    def window(self) -> Iterator[FakeWindow]:
        """Open a window."""
        self.windows += 1
        yield FakeWindow(self)
