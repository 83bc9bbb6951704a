"""What ends a search before it is done: its budget, a time limit, or a request."""

from __future__ import annotations

import time

from wattbit.errors import ConfigError


class SearchInterrupted(Exception):  # noqa: N818 (not an error: what was evaluated counts)
    """Raised inside a search that has to stop now."""


class BudgetSpent(SearchInterrupted):
    """Raised when a method asks for one plan more than its budget."""


class StopRule:
    """A time limit that starts with its creation, and a switch that others may set.

    Args:
        time_limit_s: Seconds until the search must stop; None for no limit.

    Raises:
        ConfigError: If the limit is not above 0.
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
        """True once `request` was called."""
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
