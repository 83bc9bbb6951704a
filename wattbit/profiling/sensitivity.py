"""Sensitivity: how far the model's output moves when one layer alone runs at another precision.

Measured directly here, one pass of all samples for each layer and precision;
`wattbit.profiling.gradient_sensitivity` gets nearly the same figures from a few passes in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.errors import ConfigError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, batches
from wattbit.precision import Precision

SensitivityMethod = Literal["direct", "gradient"]
"""``direct`` runs the model for each layer and precision; ``gradient`` follows its derivatives instead."""

Progress = Callable[[int, int], None]
"""Called with (done, total) after each step of a long measurement."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LayerChoice = tuple[int, Precision]
"""The index of a layer, and a precision it might run at."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far the output moves when one layer runs at another precision.

    Attributes:
        mean: Mean Kullback-Leibler divergence from the reference output, nats.
        std_error: Standard error of ``mean`` over samples; 0 for a single one.
    """

    mean: float
    std_error: float

    @classmethod
    def of(cls, divergences: Tensor) -> Sensitivity:
        """From the divergence of each sample, (samples,), nats."""
        values = divergences.double()
        error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return cls(float(values.mean()), error)


def require_method(method: str) -> None:
    """Refuse an unknown way to find sensitivities.

    Raises:
        ConfigError: If ``method`` is not a `SensitivityMethod`.
    """
    known = get_args(SensitivityMethod)
    if method not in known:
        raise ConfigError(f"sensitivity {method!r} is unknown; choose from {', '.join(known)}")


def divergence(log_reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence (nats) of the plan's output from the reference's, per sample.

    Args:
        log_reference: Log-probabilities of the reference, (samples, classes).
        logits: Logits of the plan, (samples, classes).

    Returns:
        (samples,) non-negative values: sum over classes of p_ref * (log p_ref - log p_plan).
    """
    terms = F.kl_div(F.log_softmax(logits, 1), log_reference, reduction="none", log_target=True)
    return terms.sum(1).clamp_min(0.0)


def direct_sensitivities(
    model: SwitchableModel,
    inputs: Inputs,
    candidates: Sequence[LayerChoice],
    batch_size: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Sensitivity | None]:
    """Run all ``inputs`` once for each candidate.

    Args:
        model: The model, calibrated.
        inputs: The samples.
        candidates: What to measure.
        batch_size: Samples per forward pass.
        workers: Threads that measure candidates side by side; results do not depend on it.
        progress: Called after each candidate.

    Returns:
        One for each candidate; None where the output is not finite.

    Raises:
        ModelError: If the reference output is not finite.
    """
    reference = reference_log_probabilities(model.logits(batches(inputs, batch_size), model.reference_plan))

    def measure(candidate: LayerChoice) -> Sensitivity | None:
        index, precision = candidate
        if precision == model.precisions[0]:
            return Sensitivity(0.0, 0.0)
        plan = model.reference_plan.replace(**{model.layer_names[index]: precision.name})
        values = divergence(reference, model.logits(batches(inputs, batch_size), plan))
        return Sensitivity.of(values) if bool(torch.isfinite(values).all()) else None

    found: list[Sensitivity | None] = []
    for sensitivity in side_by_side(measure, candidates, workers):
        found.append(sensitivity)
        if progress:
            progress(len(found), len(candidates))
    return found


def side_by_side(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[_Result]:
    """The result of ``function`` for each of ``items``, in order, computed by ``workers`` threads.

    torch releases the interpreter's lock while it computes, so threads are as fast as processes here.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def reference_log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of the reference from its ``logits``, both (samples, classes).

    Raises:
        ModelError: If a logit is NaN or infinite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the reference output holds NaN or infinite values, allowed are 0; check the model and its inputs"
        )
    return F.log_softmax(logits, 1)
