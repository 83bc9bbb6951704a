"""A split on which plans are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.evaluators.plan_evaluator import correct
from wattbit.execution.switchable import SwitchableModel
from wattbit.judging.noninferiority import PairedCounts
from wattbit.model_inputs import Inputs
from wattbit.plan import PrecisionPlan


class SplitEvaluator:
    """One split on which plans are judged, and nothing is chosen; each plan runs on it once.

    Args:
        model: The calibrated model.
        batches: The split's samples, in batches.
        labels: Their labels, int64, shape (samples,).
    """

    def __init__(self, model: SwitchableModel, batches: Sequence[Inputs], labels: Tensor) -> None:
        self._model = model
        self._labels = labels
        self._batches = batches
        self._correct: dict[PrecisionPlan, NDArray[np.bool_]] = {}
        self._predictions: dict[PrecisionPlan, Tensor] = {}

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each sample."""
        labels: NDArray[np.int64] = self._labels.numpy()
        return labels

    def correct(self, plan: PrecisionPlan) -> NDArray[np.bool_]:
        """Which samples ``plan`` classifies right, (samples,)."""
        if plan not in self._correct:
            logits = self._model.logits(self._batches, plan)
            self._correct[plan] = correct(logits, self._labels).numpy()
            self._predictions[plan] = logits.argmax(1)
        return self._correct[plan]

    def disagreements(self, plan: PrecisionPlan) -> int:
        """On how many samples ``plan`` predicts something else than the reference."""
        return int((self._predicted(plan) != self._predicted(self._model.reference_plan)).sum())

    def _predicted(self, plan: PrecisionPlan) -> Tensor:
        self.correct(plan)
        return self._predictions[plan]

    @property
    def reference(self) -> NDArray[np.bool_]:
        """Which samples the reference classifies right."""
        return self.correct(self._model.reference_plan)

    @property
    def reference_accuracy(self) -> float:
        """The reference's accuracy, 0 to 1."""
        return float(self.reference.mean())

    def counts(self, plan: PrecisionPlan) -> PairedCounts:
        """Paired outcomes of ``plan`` against the reference."""
        return PairedCounts.from_correct(self.reference, self.correct(plan))
