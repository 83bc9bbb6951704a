"""Worker processes, each with an evaluator of its own, and the parts of a list of plans they are given.

A worker is a fresh process (spawned, so that it inherits neither threads nor locks) that builds its evaluator
once. It leaves Ctrl-C to the process that started it, and ends with that process, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from envs.evaluators.evaluator import Evaluator, Outcome
from wattbit.errors import ConfigError, WattbitError, one_line
from wattbit.plan import PrecisionPlan

EvaluatorMaker = Callable[[], Evaluator]
"""Builds a worker's evaluator; picklable, so a function of a module or an instance of such a class."""

T = TypeVar("T")

_ENDING_S = 5.0
_log = logging.getLogger(__name__)


class WorkerError(WattbitError):
    """A worker process that cannot be started, failed, or ended by itself twice."""


class WorkerPool:
    """Worker processes, each with an evaluator of its own.

    Args:
        factory: Builds an evaluator in a worker.
        workers: Number of workers.

    Raises:
        ConfigError: If there are fewer than 2 workers.
    """

    def __init__(self, factory: EvaluatorMaker, workers: int) -> None:
        if workers < 2:
            raise ConfigError(f"{workers} worker processes save no time; give 2 or more, or use workers=1")
        self._factory = factory
        self._workers: list[_Worker | None] = [None] * workers

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that were started."""
        return tuple(worker.pid for worker in self._workers if worker is not None)

    def evaluate(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        """The outcomes of ``plans``, which are cut into neighbouring parts, one a worker.

        A worker that ends by itself is replaced once.

        Raises:
            WorkerError: If its replacement ends as well, or an evaluator fails.
            WattbitError: What an evaluator, or the building of one, raised.
        """
        parts = _parts(plans, len(self._workers))
        try:
            return [outcome for found in self._run(parts) for outcome in found]
        except BaseException:
            # Workers may be in the middle of something, and their answers would come to the next question.
            self.close()
            raise

    def close(self) -> None:
        """End the workers at once."""
        for index, worker in enumerate(self._workers):
            if worker is not None:
                worker.end()
                self._workers[index] = None

    def _run(self, parts: Sequence[Sequence[PrecisionPlan]]) -> list[list[Outcome]]:
        found: dict[int, list[Outcome]] = {}
        replaced: set[int] = set()
        for index in range(len(parts)):
            self._started(index).ask(parts[index])
        while len(found) < len(parts):
            for index in self._answering([index for index in range(len(parts)) if index not in found]):
                worker = self._started(index)
                try:
                    answer = worker.answer()
                except EOFError:
                    self._replace(index, again=index in replaced).ask(parts[index])
                    replaced.add(index)
                    continue
                if isinstance(answer, _Failure):
                    raise answer.as_error()
                if answer is not None:
                    found[index] = answer
        return [found[index] for index in range(len(parts))]

    def _started(self, index: int) -> _Worker:
        worker = self._workers[index]
        if worker is None:
            worker = self._workers[index] = _Worker(self._factory)
        return worker

    def _replace(self, index: int, *, again: bool) -> _Worker:
        code = self._started(index).end()
        self._workers[index] = None
        if again:
            raise WorkerError(
                f"worker process {index + 1} of {len(self._workers)} ended by itself twice (exit code "
                f"{code}), perhaps for want of memory; use fewer, or workers=1"
            )
        _log.warning("worker process %d ended by itself (exit code %s); it is replaced once", index + 1, code)
        return self._started(index)

    def _answering(self, indices: Sequence[int]) -> list[int]:
        """Those of the workers that have something to say, or have ended."""
        pipes = {self._started(index).pipe: index for index in indices}
        return [pipes[pipe] for pipe in connection.wait(list(pipes)) if isinstance(pipe, Connection)]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong in a worker: an error for users, or what any other looked like."""

    error: WattbitError | None
    text: str

    def as_error(self) -> WattbitError:
        """The error to raise in the parent."""
        if self.error is not None:
            return self.error
        return WorkerError(f"a worker process failed: {self.text}; run with workers=1 to see where")


class _Worker:
    """A process and the pipe to it. It says that it is ready, and then answers each question once."""

    def __init__(self, factory: EvaluatorMaker) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory), daemon=True)
        self._ready = False
        self._question: Sequence[PrecisionPlan] | None = None
        try:
            with _ctrl_c_left_to_this_process():
                self._process.start()
        except Exception as error:
            # Such as a factory that pickle cannot take, or one process too many.
            self.pipe.close()
            raise WorkerError(f"cannot start a worker process: {one_line(error)}; use workers=1") from None
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid or 0

    def ask(self, plans: Sequence[PrecisionPlan]) -> None:
        """Send plans, now or as soon as the worker is ready."""
        self._question = plans
        if self._ready:
            self._send()

    def answer(self) -> list[Outcome] | _Failure | None:
        """What the worker says; None if it only says that it is ready.

        Raises:
            EOFError: If it has ended.
        """
        try:
            said: list[Outcome] | _Failure | None = self.pipe.recv()
            if said is None:
                self._ready = True
                self._send()
        except OSError:
            raise EOFError from None
        return said

    def end(self) -> int | None:
        """End the process, which has nothing to lose, and return its exit code."""
        self.pipe.close()
        # One that ended by itself keeps its own exit code.
        self._process.join(0.1)
        if self._process.is_alive():
            self._process.kill()
        self._process.join(_ENDING_S)
        return self._process.exitcode

    def _send(self) -> None:
        # One that has ended shows by the end of its pipe.
        with contextlib.suppress(OSError):
            if self._question is not None:
                self.pipe.send(list(self._question))


def _serve(pipe: Connection, factory: EvaluatorMaker) -> None:
    """The worker: build the evaluator, say so, and answer until the pipe ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # The pipe ends when the other process lets go of it.
    with contextlib.suppress(EOFError, OSError):
        evaluator = _outcome_of(factory)
        pipe.send(evaluator if isinstance(evaluator, _Failure) else None)
        while not isinstance(evaluator, _Failure):
            plans: list[PrecisionPlan] = pipe.recv()
            pipe.send(_outcome_of(partial(evaluator.evaluate_all, plans)))


def _outcome_of(work: Callable[[], T]) -> T | _Failure:
    try:
        return work()
    except Exception as error:
        return _Failure(error if isinstance(error, WattbitError) else None, one_line(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _parts(plans: Sequence[PrecisionPlan], most: int) -> list[Sequence[PrecisionPlan]]:
    """``plans`` cut into at most ``most`` neighbouring parts of equal size, give or take one."""
    count = min(most, len(plans))
    edges = [round(part * len(plans) / count) for part in range(count + 1)]
    return [plans[low:high] for low, high in pairwise(edges)]


@contextlib.contextmanager
def _ctrl_c_left_to_this_process() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which a terminal sends to all of them.

    What is blocked stays blocked in a child, from its first moment on.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Were it started later, the tracker would unblock the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
