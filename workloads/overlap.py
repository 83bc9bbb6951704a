"""Samples that are in two splits: what is chosen on one and tested on the other is not tested at all."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch

from wattbit.errors import DataError
from workloads.arrays import named_tensors
from workloads.workload import Split

LARGEST_SHARE = 0.01
"""The share of a split's samples that may be in another one: real data hold a few samples twice."""


def require_disjoint(splits: Mapping[str, Split]) -> str | None:
    """Refuse splits that share samples, by content; say how many they share where they are few.

    Raises:
        DataError: If more than `LARGEST_SHARE` of a split's samples are in another one.
    """
    hashes = {name: sample_hashes(split) for name, split in splits.items()}
    found = []
    for one, other in combinations(splits, 2):
        held = set(hashes[one]) & set(hashes[other])
        if not held:
            continue
        shares = [(sum(h in held for h in hashes[name]), len(hashes[name]), name) for name in (one, other)]
        count, samples, name = max(shares, key=lambda share: share[0] / share[1])
        where = f"{count} of {samples} samples of split {name!r} are in {other if name == one else one!r} too"
        if count > LARGEST_SHARE * samples:
            raise DataError(
                f"{where}, allowed is {LARGEST_SHARE:.0%}; cut the data into parts that share no sample"
            )
        found.append(where)
    return "; ".join(found) or None


def sample_hashes(split: Split) -> list[int]:
    """A hash of the inputs of each sample: equal for equal ones, within this process."""
    parts = []
    for _, tensor in named_tensors(split.inputs):
        if tensor.ndim and len(tensor) == len(split):
            rows = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
            parts.append([hash(row.tobytes()) for row in rows])
    return [hash(sample) for sample in zip(*parts, strict=True)]
