"""Batches of sentences of like length, without the padding that all sentences of a batch have in common.

Padding is hidden from a model by its attention mask, but computed all the same: half of the work where
sentences are of mixed length. Without it a batch costs what its longest sentence costs.
"""

from __future__ import annotations

from torch import Tensor

from wattbit.batches import Inputs, batches, select
from workloads.workload import Split

_MASK = "attention_mask"
"""The input that is 1 at tokens and 0 at the padding behind them, (samples, tokens), by its usual name."""


def batches_by_length(split: Split, batch_size: int) -> tuple[list[Inputs], Tensor]:
    """The samples of ``split``, the shortest first, in batches that end with their longest sentence.

    Args:
        split: Samples; where the inputs are no dict with an ``attention_mask``, they are cut in their order.
        batch_size: Samples a batch.

    Returns:
        The batches, and the labels in the same order, (samples,).

    Raises:
        ConfigError: If ``batch_size`` is below 1.
    """
    inputs = split.inputs
    if not isinstance(inputs, dict) or _MASK not in inputs:
        return list(batches(inputs, batch_size)), split.labels
    order = inputs[_MASK].sum(1).argsort(stable=True)
    parts = batches(select(inputs, order), batch_size)
    return [_without_padding(part) for part in parts if isinstance(part, dict)], split.labels[order]


def _without_padding(batch: dict[str, Tensor]) -> Inputs:
    mask = batch[_MASK]
    longest, width = max(1, int(mask.sum(1).max())), mask.shape[1]
    return {
        name: tensor[:, :longest].contiguous() if tensor.ndim > 1 and tensor.shape[1] == width else tensor
        for name, tensor in batch.items()
    }
