"""What is checked once, before anything is profiled: the data, and what the model makes of them as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import bdtr
from torch import Tensor

from envs.evaluators.plan_evaluator import correct
from wattbit.errors import DataError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, call_model, logits_of, num_samples, raw_logits, select
from wattbit.profiling.count_macs import count_macs
from workloads.overlap import require_disjoint
from workloads.padding import split_batches
from workloads.workload import Workload

_HELD = ("calibrate", "search", "certify", "test")
_CHANCE_LEVEL = 0.01
"""A model that only names the commonest class seems better than that in one case of a hundred."""

_SAME = 1e-3
"""Largest relative error of the attached model at the reference."""


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """What the model, before anything is attached to it, does on the data.

    Attributes:
        accuracy: Its accuracy by split, 0 to 1.
        warnings: What makes a certificate worth little, a sentence each.
        first: The logits of the first batch of ``search``.
        macs: Multiply-accumulates by module; see `count_macs`.
    """

    accuracy: Mapping[str, float]
    warnings: tuple[str, ...]
    first: Tensor
    macs: Mapping[str, int]

    @property
    def text(self) -> str:
        """The accuracies in a line."""
        shares = ", ".join(f"{100 * share:.2f} % on {name}" for name, share in self.accuracy.items())
        return f"Accuracy of the reference: {shares}."


@torch.inference_mode()
def check_reference(workload: Workload) -> ReferenceCheck:
    """Check that splits share no samples, and run the model as it is on all of them but ``train``.

    Raises:
        DataError: If splits share samples, or there are other numbers of classes and logits.
        ModelError: If the model cannot be run, or its outputs are no finite logits, one row a sample.
    """
    shared = require_disjoint(workload.splits)
    accuracy, warnings = {}, [] if shared is None else [shared]
    for name in _HELD:
        batches, labels = split_batches(workload, name)
        parts = [_checked_logits(workload, name, batch) for batch in batches]
        if name == "search":
            first = parts[0]
        right = int(correct(torch.cat(parts), labels).sum())
        accuracy[name] = right / len(labels)
        if name in ("search", "certify"):
            warnings += _chance(name, right, labels)
    some = select(workload.splits["calibrate"].inputs, slice(0, 2))
    if _autocasts(workload, some):
        warnings.append(
            "the model autocasts within its forward pass: its accuracy is that of the model as it is, but "
            "energies count its reference at fp32, so that savings are overstated; let plans choose instead"
        )
    macs = count_macs(workload.model, some)
    return ReferenceCheck(accuracy, tuple(warnings), first, macs)


def require_same_reference(model: SwitchableModel, workload: Workload, check: ReferenceCheck) -> None:
    """Refuse an attached model that does not give at the reference what it gives as it is.

    Raises:
        ModelError: If it does not.
    """
    batch = split_batches(workload, "search")[0][0]
    error = float((model.logits([batch], model.reference_plan) - check.first).abs().max())
    if not error <= _SAME * max(1e-6, float(check.first.abs().max())):
        raise ModelError(
            f"the model's logits differ by {error:.3g} from one call to the next, or from its own when it is "
            "attached; a reference must repeat itself: switch off what is random or remembers in it"
        )


def _checked_logits(workload: Workload, split: str, batch: Inputs) -> Tensor:
    samples, classes = num_samples(batch), len(workload.classes)
    output = _called(workload, split, batch)
    raw = raw_logits(output)
    if not raw.is_floating_point():
        raise ModelError(f"the model returns {raw.dtype}; logits must be floating: return them before argmax")
    logits = logits_of(output).float().cpu()
    if logits.shape != (samples, classes):
        one = f" or ({samples}, 1)" if classes == 2 else ""
        raise DataError(
            f"the model returns logits of shape {tuple(raw.shape)} for {samples} samples of {split!r} with "
            f"{classes} classes; needed is ({samples}, {classes}){one}, a row of logits for each sample, and "
            "a name in classes for each column"
        )
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise ModelError(
            f"the reference output on {split!r} holds NaN or infinite values in {bad} of {samples} samples "
            "of a batch, allowed are 0; check the model and its inputs"
        )
    return logits


def _called(workload: Workload, split: str, batch: Inputs) -> Any:
    try:
        return call_model(workload.model, batch)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ModelError(
            f"the model cannot be run on a batch of {split!r} ({type(error).__name__}: {what:.200}); give "
            "inputs that model(inputs), model(*inputs) or model(**inputs) takes, floats as torch.float32"
        ) from error


def _autocasts(workload: Workload, batch: Inputs) -> bool:
    """Whether a part of the model runs under autocast that the model itself switches on."""
    seen: list[bool] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        for module in workload.model.modules()
    ]
    _called(workload, "calibrate", batch)
    for handle in handles:
        handle.remove()
    return any(seen)


def _chance(split: str, right: int, labels: Tensor) -> list[str]:
    samples, most = len(labels), int(torch.bincount(labels).max())
    # The chance that a model which is right as often as the commonest class gets this many right or more.
    if bdtr(samples - right, samples, 1.0 - most / samples) <= _CHANCE_LEVEL:
        return []
    return [
        f"the reference is right on {right} of {samples} samples of {split!r}, which is not clearly better "
        f"than always naming the commonest class ({most}): a certificate says little about such a model"
    ]
