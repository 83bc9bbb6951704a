"""Ctrl-C ends the search, not the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from agents.stopping import StopRule


@contextmanager
def stop_on_signals(stop: StopRule, console: Console) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the search and keeps its result; the second ends the program."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()
        console.print("Stopping after this evaluation; once more to quit at once.", highlight=False)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
