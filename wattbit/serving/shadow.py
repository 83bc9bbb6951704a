"""Shadow evaluation: which batches also run at the reference, and how much they may disagree."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import GuardrailError
from wattbit.judging.noninferiority import PairedCounts, upper_bound_pp
from wattbit.model_inputs import logits_of
from wattbit.serving.bundle import BundledPlan, ControllerBundle
from wattbit.serving.monitor import EProcess

_LIMIT_LEVEL = 0.1
_LEAST_LIMIT_PP = 0.1
"""Below it a single tie broken the other way, as another machine's arithmetic does, would be an alarm."""


class ShadowWatch:
    """Chooses the batches to shadow, and raises the alarm; safe to use from several threads.

    What is observed is the mean of a window: of a batch, or of as many as hold ``window`` samples. So samples
    of one window may depend on each other in any way without a false alarm becoming likelier.

    Args:
        share: Share of batches that are shadowed, 0 to 1.
        limit_pp: Largest rate of disagreement with the reference that is tolerated, percentage points.
        alpha: Level of the alarm: its false-alarm probability between two resets.
        window: Fewest samples of an observation.

    Raises:
        GuardrailError: If a setting makes no sense.
    """

    def __init__(self, share: float, limit_pp: float, alpha: float, window: int = 32) -> None:
        if not 0.0 <= share <= 1.0:
            raise GuardrailError(f"shadow_share is {share}, must be from 0 to 1; 0.01 runs 1 batch in 100")
        if not 0.0 < limit_pp < 100.0:
            raise GuardrailError(
                f"rollback_limit_pp is {limit_pp}, must be above 0 and below 100; leave it out to take it "
                "from the certificate"
            )
        if not 0.0 < alpha < 1.0:
            raise GuardrailError(f"alpha is {alpha}, must be above 0 and below 1; 0.05 is usual")
        if window < 1:
            raise GuardrailError(f"shadow_window is {window}, must be at least 1; 32 is usual")
        self._share = share
        self._alpha = alpha
        self._limit_pp = limit_pp
        self._window = window
        self._lock = threading.Lock()
        self._batches = self._samples = self._disagreed = 0
        self._drift = EProcess(limit_pp / 100.0)

    @property
    def limit_pp(self) -> float:
        """The rate of disagreement tolerated, percentage points."""
        return self._limit_pp

    def due(self) -> bool:
        """Whether to shadow the next batch: shadowed ones are spread evenly, the first after half a gap.

        So a process that runs few batches pays nothing, and its first answers are the plan's own.
        """
        with self._lock:
            done = math.floor(self._batches * self._share + 0.5)
            self._batches += 1
            return math.floor(self._batches * self._share + 0.5) > done

    def observe(self, disagreements: Sequence[bool]) -> bool:
        """Add whether each sample of a shadowed batch disagreed; True if there is an alarm."""
        with self._lock:
            self._samples += len(disagreements)
            self._disagreed += sum(disagreements)
            if self._samples >= self._window:
                self._drift.update(self._disagreed / self._samples, self._samples)
                self._samples = self._disagreed = 0
            return self._drift.alarm(self._alpha)

    def reset(self) -> None:
        """Forget the evidence so far."""
        with self._lock:
            self._samples = self._disagreed = 0
            self._drift = EProcess(self._limit_pp / 100.0)


def certified_limit_pp(bundle: ControllerBundle, plan: BundledPlan | None) -> float:
    """The rate of disagreement that the certificate of ``plan`` leaves room for, percentage points.

    The upper bound (Clopper and Pearson 1934, 90 %) of the rate seen on ``certify``, and at least 0.1 pp.
    Where the bundle does not say how many predictions differed, it is b + c, those that changed between right
    and wrong: fewer, so that the alarm comes sooner. Without a plan the reference runs, and agrees with
    itself.

    Raises:
        GuardrailError: If the certificate holds no counts.
    """
    if plan is None:
        return _LEAST_LIMIT_PP
    certificate = next(found for found in bundle.certificates if plan.certified_by(found))
    counts = certificate.judgements[plan.plan.plan_id].counts
    if counts is None:
        raise GuardrailError(
            f"the certificate of plan {plan.plan.plan_id} has no counts, so no limit of disagreement "
            "follows from it; give rollback_limit_pp"
        )
    seen = counts.reference_only + counts.plan_only
    if plan.disagreements is not None:
        seen = max(seen, plan.disagreements)
    found = PairedCounts(counts.samples, min(seen, counts.samples), 0)
    # Half of the strict bound's alpha goes to the losses, which are all there is here.
    bound_pp = upper_bound_pp(found, 2.0 * _LIMIT_LEVEL, strict=True)
    return min(max(bound_pp, _LEAST_LIMIT_PP), 99.0)


def disagreement(output: Any, expected: Any) -> list[bool]:
    """Which samples two outputs of a model predict differently, in any position.

    Raises:
        ModelError: If an output holds no logits.
    """
    with torch.no_grad():
        found, wanted = logits_of(output).argmax(1), logits_of(expected).argmax(1)
        differs: Tensor = (found != wanted).unsqueeze(-1).flatten(1).any(1)
        return [bool(value) for value in differs.tolist()]
