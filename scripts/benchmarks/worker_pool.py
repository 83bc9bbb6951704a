"""Runs independent pieces of a benchmark in several processes, each on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

from pipeline.preparation import use_threads

Unit = TypeVar("Unit")
Found = TypeVar("Found")


def run_all(
    work: Callable[[Unit], Found], units: Sequence[Unit], workers: int
) -> Iterator[tuple[Unit, Found]]:
    """Each of ``units`` with what ``work`` finds, as it finishes; one worker is this process."""
    if workers <= 1:
        yield from ((unit, work(unit)) for unit in units)
        return
    # Forking a process that runs threads may hang; a new one imports what it needs.
    with ProcessPoolExecutor(workers, get_context("spawn"), use_threads, (1,)) as pool:
        futures = {pool.submit(work, unit): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
