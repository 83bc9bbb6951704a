"""Progress for people: one bar a stage with the time left, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_TABLE_WIDTH = 110

Update = Callable[[int, int, str], None]
"""Called with (done, total, note)."""


def make_console() -> Console:
    """A console as wide as its terminal; in a file or a pipe, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_TABLE_WIDTH)


class Stages:
    """Shows the stages of a run, one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, label: str) -> Iterator[Update]:
        """Time the stage ``name`` and show ``label`` with a bar while it runs; equal names add up."""
        started = time.perf_counter()
        # A bar that nobody sees would only leave blank lines in a log.
        quiet = not self._console.is_terminal
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        try:
            with Progress(*columns, console=self._console, transient=True, disable=quiet) as progress:
                bar = progress.add_task(label, total=None, note="")

                def update(done: int, total: int, note: str = "") -> None:
                    progress.update(bar, completed=done, total=total, note=note)

                yield update
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self._console.print(f"  {label:<22} {spent:7.1f} s", highlight=False)
