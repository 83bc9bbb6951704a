"""Worker pools whose makers and ends can be asked for, in the place of a parallel evaluator's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from envs.evaluators import parallel_evaluator
from envs.evaluators.workers import EvaluatorMaker, WorkerPool


class RecordedPool(WorkerPool):
    """A pool that remembers what it was made with and whether it was closed."""

    def __init__(self, factory: EvaluatorMaker, workers: int) -> None:
        super().__init__(factory, workers)
        self.factory = factory
        self.closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


@contextmanager
def recorded_pools() -> Iterator[list[RecordedPool]]:
    """The pools of the parallel evaluators that are made inside."""
    made: list[RecordedPool] = []

    def make(factory: EvaluatorMaker, workers: int) -> WorkerPool:
        made.append(RecordedPool(factory, workers))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_evaluator, "WorkerPool", make)
        yield made
