"""Shadow evaluation: which batches also run at the reference, and how much they disagree."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import GuardrailError
from wattbit.model_inputs import logits_of
from wattbit.serving.monitor import EProcess


class ShadowWatch:
    """Chooses the batches to shadow, and raises the alarm; safe to use from several threads.

    Args:
        share: Share of batches that are shadowed, 0 to 1.
        limit_pp: Largest rate of disagreement with the reference that is tolerated, percentage points.
        alpha: Level of the alarm: its false-alarm probability between two resets.

    Raises:
        GuardrailError: If a setting makes no sense.
    """

    def __init__(self, share: float, limit_pp: float, alpha: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise GuardrailError(f"shadow_share is {share}, must be from 0 to 1; 0.01 runs 1 batch in 100")
        if not 0.0 < limit_pp < 100.0:
            raise GuardrailError(
                f"rollback_limit_pp is {limit_pp}, must be above 0 and below 100; 0.7 is usual"
            )
        if not 0.0 < alpha < 1.0:
            raise GuardrailError(f"alpha is {alpha}, must be above 0 and below 1; 0.01 is usual")
        self._share = share
        self._alpha = alpha
        self._limit_pp = limit_pp
        self._lock = threading.Lock()
        self._batches = 0
        self._drift = EProcess(limit_pp / 100.0)

    @property
    def limit_pp(self) -> float:
        """The rate of disagreement tolerated, percentage points."""
        return self._limit_pp

    def due(self) -> bool:
        """Whether to shadow the next batch: shadowed ones are spread evenly, from the first batch on."""
        with self._lock:
            done = math.ceil(self._batches * self._share)
            self._batches += 1
            return math.ceil(self._batches * self._share) > done

    def observe(self, disagreements: Iterable[bool]) -> bool:
        """Add whether each sample of a shadowed batch disagreed; True if this raises the alarm."""
        with self._lock:
            for disagreement in disagreements:
                self._drift.update(float(disagreement))
            return self._drift.alarm(self._alpha)

    def reset(self) -> None:
        """Forget the evidence so far."""
        with self._lock:
            self._drift = EProcess(self._limit_pp / 100.0)


def disagreement(output: Any, expected: Any) -> list[bool]:
    """Which samples two outputs of a model predict differently, in any position.

    Raises:
        ModelError: If an output holds no logits.
    """
    with torch.no_grad():
        found, wanted = logits_of(output).argmax(1), logits_of(expected).argmax(1)
        differs: Tensor = (found != wanted).unsqueeze(-1).flatten(1).any(1)
        return [bool(value) for value in differs.tolist()]
