"""When a search has to stop: a time limit, or somebody's wish."""

from __future__ import annotations

import time

from agents.search_method import SearchInterrupted
from wattbit.errors import ConfigError


class StopRule:
    """Counts the time from its creation; `check` raises once it is up, or once `request` was called.

    Args:
        time_limit_s: Seconds until the search must stop; None for no limit.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        if time_limit_s is not None and not time_limit_s > 0:
            raise ConfigError(f"time_limit_s is {time_limit_s}, must be above 0; leave it out for no limit")
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._requested = False
        self.status = "finished"

    def request(self) -> None:
        """Ask the search to stop at its next evaluation."""
        self._requested = True

    @property
    def requested(self) -> bool:
        """True once somebody asked."""
        return self._requested

    def check(self) -> None:
        """Raise `SearchInterrupted` if the search has to stop."""
        if self._requested:
            self.status = "interrupted"
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self.status = "time limit"
        else:
            return
        raise SearchInterrupted(self.status)
