"""Batches of sentences of like length, without the padding that all sentences of a batch have in common.

Padding is hidden from a model by its attention mask, but computed all the same: half of the work where
sentences are of mixed length. Without it a batch costs what its longest sentence costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wattbit.batches import Inputs, batches, select
from workloads.workload import Split, Workload

_MASK = "attention_mask"
"""The input that is 1 at tokens and 0 at the padding behind them, (samples, tokens), by its usual name."""


def split_batches(workload: Workload, name: str) -> tuple[list[Inputs], Tensor]:
    """The samples of a split in the batches that plans are run on, and the labels in the same order.

    Args:
        workload: The workload; says whether padding may be cut, and how large a batch is.
        name: The split.
    """
    split, size = workload.splits[name], workload.batch_size
    if workload.cuts_padding:
        return batches_by_length(split, size)
    return list(batches(split.inputs, size)), split.labels


def batches_by_length(split: Split, batch_size: int) -> tuple[list[Inputs], Tensor]:
    """The samples of ``split``, the shortest first, in batches that end with their longest sentence.

    Args:
        split: Samples. Their order is kept, and nothing is cut, unless the inputs are a dict with an
            ``attention_mask`` and all of them have its shape.
        batch_size: Samples a batch.

    Returns:
        The batches, and the labels in the same order, (samples,).

    Raises:
        ConfigError: If ``batch_size`` is below 1.
    """
    inputs = split.inputs
    if not isinstance(inputs, dict) or {tensor.shape for tensor in inputs.values()} != _shape_of_mask(inputs):
        return list(batches(inputs, batch_size)), split.labels
    order = _ends(inputs).argsort(stable=True)
    parts = batches(select(inputs, order), batch_size)
    return [_without_padding(part) for part in parts if isinstance(part, dict)], split.labels[order]


def _shape_of_mask(inputs: dict[str, Tensor]) -> set[torch.Size]:
    return {inputs[_MASK].shape} if _MASK in inputs and inputs[_MASK].ndim == 2 else set()


def _ends(inputs: dict[str, Tensor]) -> Tensor:
    """Where the padding behind each sentence begins, (samples,); padding before it is not counted."""
    mask = inputs[_MASK]
    return ((mask != 0) * torch.arange(1, mask.shape[1] + 1)).amax(1).clamp_min(1)


def _without_padding(batch: dict[str, Tensor]) -> Inputs:
    end = int(_ends(batch).max())
    return {name: tensor[:, :end].contiguous() for name, tensor in batch.items()}
