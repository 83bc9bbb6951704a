"""Outputs that are not finite: whether plan or input is at fault, and how often it may be the plan."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import GuardrailError
from wattbit.model_inputs import logits_of, tensors_in

_WINDOW = 1000


def is_finite(output: Any) -> bool:
    """Whether everything that a model returned is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(output))


def plan_at_fault(output: Any, expected: Any) -> bool:
    """Whether ``output`` is not finite in a place where the reference's, ``expected``, is."""
    pairs = _floats(output), _floats(expected)
    return [tensor.shape for tensor in pairs[0]] != [tensor.shape for tensor in pairs[1]] or any(
        bool((~torch.isfinite(found) & torch.isfinite(wanted)).any())
        for found, wanted in zip(*pairs, strict=True)
    )


class FailureLimit:
    """Counts the batches in which the plan was at fault; safe to use from several threads.

    Args:
        most: The number of such batches, among the last 1,000, that is too many.

    Raises:
        GuardrailError: If ``most`` is below 1.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise GuardrailError(f"max_reruns is {most}, must be at least 1; 3 is usual")
        self._failed: deque[int] = deque(maxlen=most)
        self._batches = 0
        self._lock = threading.Lock()

    def add(self, failed: bool) -> bool:
        """Count a batch; True if too many failed."""
        with self._lock:
            self._batches += 1
            if not failed:
                return False
            self._failed.append(self._batches)
            full = len(self._failed) == self._failed.maxlen
            return full and self._batches - self._failed[0] < _WINDOW

    def reset(self) -> None:
        """Forget what failed so far."""
        with self._lock:
            self._failed.clear()


def _floats(output: Any) -> list[Tensor]:
    tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() or tensor.is_complex()]
    # An object of the model's own class, whose tensors cannot be listed, shows its logits.
    return tensors or [logits_of(output)]
