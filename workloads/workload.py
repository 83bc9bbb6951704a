"""What a workload is: a trained model, disjoint splits of data, and the classes it tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wattbit.eager import eager_model
from wattbit.errors import ConfigError, DataError, ModelError
from wattbit.model_inputs import Inputs, num_samples, select
from wattbit.profiling.sensitivity import SensitivityMethod, require_method
from wattbit.storage.fingerprint import tensors_sha256
from workloads.arrays import as_inputs, as_tensors, named_flags, named_tensors

SPLITS = ("train", "calibrate", "search", "certify", "test")
"""The parts of a workload's data. Each has one use, and no sample is in two of them."""

MIN_SAMPLES = 2
"""The least samples of a split: a standard error and batch normalisation both need two."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One named part of the data.

    Attributes:
        inputs: A tensor, a tuple or a dict of tensors, with the samples along the first axis. Numpy arrays,
            lists of numbers and lists of a tensor a sample become tensors. Inputs may lie in tuples, lists
            and dicts within, beside flags, None, text and single numbers that every batch gets as they are.
        labels: The class of each sample, int64, shape (samples,) or (samples, 1).

    Raises:
        DataError: If there is no sample, inputs and labels differ in length, labels are not int64 along one
            axis, an input is NaN or infinite, or is nothing that a batch can be cut from.
    """

    inputs: Inputs
    labels: Tensor

    def __post_init__(self) -> None:
        labels = as_tensors(self.labels)
        if not isinstance(labels, Tensor):
            raise DataError(f"labels are a {type(labels).__name__}; give a torch.int64 tensor (samples,)")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "inputs", as_inputs(self.inputs, len(labels) if labels.ndim else 0))
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; "
                "give one class index a sample: torch.int64 of shape (samples,)"
            )
        tensors = named_tensors(self.inputs)
        if not any(tensor.ndim for _, tensor in tensors):
            tensors = tensors[:1]
        else:
            tensors = [(name, tensor) for name, tensor in tensors if tensor.ndim]
        if not tensors or len(self.labels) == 0:
            raise DataError("split is empty: 0 samples; give at least 1")
        for name, tensor in tensors:
            count = len(tensor) if tensor.ndim else 0
            if count != len(self.labels):
                raise DataError(
                    f"{name} has {count} samples but there are {len(self.labels)} labels; give as many"
                )
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                bad = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
                raise DataError(
                    f"{name} has NaN or infinite values in {int(bad.sum())} of {count} samples "
                    f"(first: sample {int(bad.nonzero()[0])}); remove or repair them"
                )

    def __len__(self) -> int:
        return num_samples(self.inputs)

    def fingerprint(self) -> str:
        """The SHA-256, as hex digits, of every tensor's name, type, shape and bytes, and every flag."""
        flags = [(flag, torch.empty(0)) for flag in named_flags(self.inputs)]
        return tensors_sha256([*named_tensors(self.inputs), *flags, ("labels", self.labels)])


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A model to tune and the data to tune it on.

    Attributes:
        name: Short name, as in tables and file names.
        model: The reference model: float32, on the CPU, in eval mode; returns logits (samples, classes).
        splits: Every name in `SPLITS`; ``train`` may be left out.
        classes: Name of each class; labels are indices into it.
        batch_size: Samples a batch when the model is evaluated.
        description: One line on the model and the data.
        sensitivity: How a profile of the model finds its sensitivities; see `wattbit.profiling.profiler`.
        trim_padding: True if sentences may be run together with others of like length, without the padding
            behind them (`workloads.padding`): twice as fast, for models that do not look at padding.

    Raises:
        DataError: If a split is missing, unknown or too small, or a label is not the index of a class.
        ModelError: If the model has NaN or infinite weights, or is not float32, on the CPU and in eval mode.
        ConfigError: If ``batch_size`` is not positive, or ``sensitivity`` is unknown.
    """

    name: str
    model: nn.Module
    splits: Mapping[str, Split]
    classes: tuple[str, ...]
    batch_size: int
    description: str
    sensitivity: SensitivityMethod = "direct"
    trim_padding: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: evaluating needs at least 1 sample a batch")
        require_method(self.sensitivity)
        _require_splits(self.splits, len(self.classes))
        object.__setattr__(self, "model", eager_model(self.model))
        _require_reference(self.model)

    def first(self, name: str, count: int) -> Split:
        """The first ``count`` samples of the split called ``name``.

        Raises:
            DataError: If it has fewer, or none are asked for.
        """
        split = self.splits[name]
        if not 1 <= count <= len(split):
            raise DataError(
                f"{count} samples asked for, split {name!r} has {len(split)}; ask for at least 1 and at most "
                f"{len(split)}, or give workload.{name} more"
            )
        return Split(select(split.inputs, slice(0, count)), split.labels[:count])


def _require_splits(splits: Mapping[str, Split], classes: int) -> None:
    missing = [name for name in SPLITS[1:] if name not in splits]
    unknown = [name for name in splits if name not in SPLITS]
    if missing or unknown:
        problem = f"lacks split {missing[0]!r}" if missing else f"has an unknown split {unknown[0]!r}"
        raise DataError(
            f"workload {problem}; give exactly these: {', '.join(SPLITS)} (train may be left out)"
        )
    for name, split in splits.items():
        if not isinstance(split, Split):
            raise DataError(f"split {name!r} is a {type(split).__name__}; give Split(inputs, labels)")
        if len(split) < MIN_SAMPLES:
            raise DataError(f"split {name!r} is too small: {len(split)} samples; give at least {MIN_SAMPLES}")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"split {name!r} has label {low if low < 0 else high}, but there are {classes} classes; "
                f"labels must be 0 to {classes - 1}"
            )


def _require_reference(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ModelError("the model is in training mode; call model.eval() first")
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device.type != "cpu":
            raise ModelError(
                f"{name!r} is on {tensor.device}; the reference model lives on the CPU: model.cpu()"
            )
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            raise ModelError(
                f"{name!r} is {tensor.dtype}; the reference model is float32: call model.float()"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{name!r} has NaN or infinite values; load or train working weights")
