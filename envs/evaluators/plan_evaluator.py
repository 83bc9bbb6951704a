"""Running plans on the search split, each once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.evaluators.evaluator import Outcome
from envs.evaluators.remembering_evaluator import RememberingEvaluator
from wattbit.errors import DataError, ModelError
from wattbit.execution.prefix_sharing import MEMORY_BYTES, PrefixSharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.judging.noninferiority import PairedCounts
from wattbit.model_inputs import Inputs, batches
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.profiling.profiler import divergence

# The divergence of an output that is not finite, nats: larger than any finite one seen, and still a number.
_WORST = 100.0


class PlanEvaluator(RememberingEvaluator):
    """Runs plans on the samples of a split and remembers every outcome.

    Plans asked for together run the layers that they begin with in common only once.

    Args:
        model: The calibrated model.
        profile: Its profile, for energy and latency.
        inputs: Samples to run plans on: the ``search`` split; a list holds batches that are cut already.
        labels: Their labels, int64, shape (samples,).
        batch_size: Samples per forward pass, where the inputs are to be cut.
        known: Outcomes from an earlier run, which are not evaluated again.
        memory_bytes: See `PrefixSharing`.

    Raises:
        DataError: If there are not as many labels as samples.
        ModelError: If the reference output is not finite.
    """

    def __init__(
        self,
        model: SwitchableModel,
        profile: ModelProfile,
        inputs: Inputs | list[Inputs],
        labels: Tensor,
        *,
        batch_size: int = 256,
        known: Mapping[PrecisionPlan, Outcome] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(profile, known)
        self._batches = inputs if isinstance(inputs, list) else list(batches(inputs, batch_size))
        self._labels = labels
        logits = model.logits(self._batches, model.reference_plan)
        if labels.shape != logits.shape[:1]:
            raise DataError(f"{len(labels)} labels for {len(logits)} samples; give one label a sample")
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                "the reference output on the search split holds NaN or infinite values, allowed are 0; "
                "check the model and its inputs"
            )
        self._sharing = PrefixSharing(model, self._batches[0], memory_bytes=memory_bytes)
        self._reference_log = F.log_softmax(logits, 1)
        self._reference_correct = correct(logits, labels)

    @property
    def reference_accuracy(self) -> float:
        """Accuracy of the reference on the search split, 0 to 1."""
        return float(self._reference_correct.double().mean())

    @property
    def sharing(self) -> PrefixSharing:
        """What runs the plans: says how much they shared, or why they cannot."""
        return self._sharing

    @property
    def samples(self) -> int:
        """Number of samples a plan is run on."""
        return len(self._labels)

    def _run(self, plans: Sequence[PrecisionPlan]) -> Iterable[Outcome]:
        required = [self.profile.require_plan(plan) for plan in plans]
        for plan, logits in self._sharing.logits(self._batches, required):
            yield self._outcome(plan, logits)

    def _outcome(self, plan: PrecisionPlan, logits: Tensor) -> Outcome:
        values = divergence(self._reference_log, logits).double().nan_to_num(nan=_WORST, posinf=_WORST)
        return Outcome(
            plan=plan,
            energy_j=self._profile.plan_energy_j(plan),
            latency_ms=self._profile.plan_latency_ms(plan),
            counts=PairedCounts.from_correct(
                self._reference_correct.numpy(), correct(logits, self._labels).numpy()
            ),
            divergence=float(values.clamp_max(_WORST).mean()),
        )


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which samples are classified right, (samples,) bool; an output that is not finite is wrong."""
    return (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
