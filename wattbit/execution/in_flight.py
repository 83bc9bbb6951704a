"""The batches under way, and the kernels that each of them keeps from its first layer to its last."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from wattbit.errors import ModelError
from wattbit.execution.packing import Kernels
from wattbit.execution.sealed import Sealed

Watch = Callable[[int, Tensor], None]
"""Told a layer's index and its input, each time a layer is about to run."""


@dataclass(frozen=True, slots=True)
class InFlightBatch:
    """What a batch keeps to its end.

    Attributes:
        kernels: Its kernels.
        watch: Who watches it.
        passes_gradients: True if its kernels have gradients, which are refused else.
        seals: What it has sealed.
    """

    kernels: Kernels
    watch: Watch | None = None
    passes_gradients: bool = False
    seals: list[weakref.ref[Sealed]] = field(default_factory=list)

    def seal(self, y: Tensor, readers: tuple[nn.Module, ...], differentiable: bool) -> Sealed:
        """``y``, which only ``readers`` may read."""
        return Sealed.for_readers(y, readers, differentiable, self.seals)

    @property
    def leaks(self) -> bool:
        """True if somebody still keeps what was sealed, such as the model's output."""
        return any(sealed() is not None for sealed in self.seals)


class InFlightBatches:
    """Counts the batches under way in all threads, and keeps what the batch of each thread holds."""

    def __init__(self) -> None:
        self._local = threading.local()
        # Every layer of every batch calls it, so it is not a Python function.
        self._current: Callable[[], InFlightBatch | None] = partial(getattr, self._local, "held", None)
        self._count = 0
        self._closing = self._closed = False
        # Re-entrant, so that a signal handler that detaches cannot wait for its own thread.
        self._idle = threading.Condition(threading.RLock())

    @property
    def current(self) -> Callable[[], InFlightBatch | None]:
        """Call it for what the batch under way in the calling thread holds; None if there is none."""
        return self._current

    @contextmanager
    def holding(self, held: InFlightBatch, *, or_after_stop: bool = False) -> Iterator[None]:
        """Run one batch in this thread that holds ``held``; batches may nest.

        Args:
            held: What the batch holds.
            or_after_stop: Where no batch may begin any more, let this one run once the others have ended.

        Raises:
            ModelError: If no batch may begin any more.
        """
        before = self._current()
        with self._idle:
            if self._closing and not or_after_stop:
                raise ModelError("the model is detached and runs no plan any more; attach it again")
            self._idle.wait_for(lambda: self._closed or not self._closing)
            self._count += 1
        self._local.held = held
        try:
            yield
        finally:
            self._local.held = before
            with self._idle:
                self._count -= 1
                self._idle.notify_all()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no further batch begin, wait for those under way, and keep others out meanwhile.

        Raises:
            ModelError: If this thread is inside a batch, which would wait for itself.
        """
        if self._current() is not None:
            raise ModelError("the model cannot be detached from inside a batch; detach it after the batch")
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: self._count == 0)
            yield
            self._closed = True
            self._idle.notify_all()
