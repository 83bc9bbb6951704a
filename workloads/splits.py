"""Cut data into disjoint splits that are balanced by class and fixed by a seed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wattbit.errors import DataError
from wattbit.model_inputs import Inputs, select
from workloads.workload import MIN_SAMPLES, SPLITS, Split


def make_splits(inputs: Inputs, labels: Tensor, sizes: Mapping[str, int], seed: int) -> dict[str, Split]:
    """Cut data into the splits of ``sizes`` and ``train``, which gets every sample that remains.

    Each split has the classes in the proportion of the data, to within a sample or two, in random order. The
    same data, sizes and seed give the same splits.

    Args:
        inputs: Tensors with the samples along the first axis.
        labels: The class of each sample, int64, shape (samples,).
        sizes: Samples of each split but ``train``; any of the other names in `SPLITS`.
        seed: Fixes which sample goes where.

    Returns:
        The splits by name, in the order of `SPLITS`.

    Raises:
        DataError: If there are too few samples, a size is too small, a split is unknown, or the data are not
            what `Split` accepts.
    """
    _require_sizes(sizes, len(labels))
    whole = Split(inputs, labels)
    inputs, labels = whole.inputs, whole.labels
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    codes = torch.unique(labels, return_inverse=True)[1]
    chosen: dict[str, Tensor] = {}
    for name in SPLITS:
        if name in sizes:
            taken = _take_balanced(codes[order], sizes[name])
            chosen[name] = order[taken]
            order = order[~taken]
    chosen["train"] = order
    return {
        name: Split(select(inputs, chosen[name]), labels[chosen[name]]) for name in SPLITS if name in chosen
    }


def _require_sizes(sizes: Mapping[str, int], count: int) -> None:
    allowed = [name for name in SPLITS if name != "train"]
    for name, size in sizes.items():
        if name not in allowed:
            raise DataError(
                f"cannot size a split {name!r}: choose from {', '.join(allowed)}; train gets the rest"
            )
        if size < MIN_SAMPLES:
            raise DataError(
                f"split {name!r} is too small: {size} samples asked for; ask for at least {MIN_SAMPLES}"
            )
    needed = sum(sizes.values()) + MIN_SAMPLES
    if count < needed:
        wanted = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"too few samples: the data have {count}, but {wanted} + train (at least {MIN_SAMPLES}) need "
            f"{needed}; give more samples or smaller splits"
        )


def _take_balanced(codes: Tensor, size: int) -> Tensor:
    """Mark the first samples of each class in ``codes`` (samples,): ``size`` in all, in proportion."""
    counts = torch.bincount(codes)
    # Largest remainders: round every class's share down, then give what is missing to the largest fractions.
    shares = counts * size
    quotas = shares // len(codes)
    fractions = shares % len(codes)
    missing = size - int(quotas.sum())
    quotas[torch.argsort(fractions, descending=True, stable=True)[:missing]] += 1
    by_class = torch.argsort(codes, stable=True)
    first_of_class = counts.cumsum(0) - counts
    rank = torch.empty_like(codes)
    rank[by_class] = torch.arange(len(codes)) - first_of_class[codes[by_class]]
    return rank < quotas[codes]
