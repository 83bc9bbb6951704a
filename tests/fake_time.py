"""Time that passes when told, for meters that must not wait."""

from __future__ import annotations

from wattbit.energy.counter import Clocks


class FakeTime:
    """A clock.

    Attributes:
        seconds: The time.
        slept_s: How long the machine slept, which one of its two clocks does not count.
    """

    def __init__(self) -> None:
        self.seconds = 1.0
        self.slept_s = 0.0

    def __call__(self) -> float:
        """The time, seconds."""
        return self.seconds

    def work(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds

    def clocks(self) -> Clocks:
        """What meters time their windows with."""
        return Clocks(
            lambda: round(self.seconds * 1e9),
            lambda: round((self.seconds + self.slept_s) * 1e9),
        )
