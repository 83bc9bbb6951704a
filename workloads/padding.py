"""Batches of sentences of like length, without the padding that all sentences of a batch have in common.

The attention mask hides padding from a model, which computes it all the same: half of the work where
sentences are of mixed length. Without it, a batch costs what its longest sentence costs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from wattbit.model_inputs import Inputs, batches, map_tensors, select
from workloads.arrays import named_tensors
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
    if workload.trim_padding:
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
    mask = inputs.get(_MASK) if isinstance(inputs, dict) else None
    if mask is None or mask.ndim != 2 or any(x.shape != mask.shape for _, x in named_tensors(inputs)):
        return list(batches(inputs, batch_size)), split.labels
    order = _ends(mask).argsort(stable=True)
    parts = batches(select(inputs, order), batch_size)
    return [_without_padding(part) for part in parts], split.labels[order]


def _ends(mask: Tensor) -> Tensor:
    """Where the padding behind each sentence begins, (samples,); padding before it is not counted."""
    return ((mask != 0) * torch.arange(1, mask.shape[1] + 1)).amax(1).clamp_min(1)


def _without_padding(batch: Inputs) -> Inputs:
    end = int(_ends(cast(dict[str, Tensor], batch)[_MASK]).max())
    return map_tensors(batch, lambda tensor: tensor[:, :end].contiguous())
