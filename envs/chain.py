"""The cheapest way through a chain of choices under a limit on a whole-number score, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wattbit.features import Floats

Integers = NDArray[np.int64]


def cheapest_chain(cost: Floats, score: Integers, limit: int) -> tuple[int, ...] | None:
    """The choices that cost least among those whose scores add up to at most ``limit``.

    Label-setting dynamic programming: for each position, choice and score, the least cost that reaches it.
    Time and memory grow with positions x choices x limit, whatever the number of chains.

    Args:
        cost: Cost of a choice after another, (positions, choice before, choice); the chain is entered from
            choice 0.
        score: Its score, 0 or more, of the same shape.
        limit: The largest sum of scores allowed, 0 or more.

    Returns:
        One choice a position; of equally cheap chains one of least score. None if every chain is beyond
        the limit.

    Raises:
        ValueError: If a score is negative.
    """
    if score.min() < 0:
        raise ValueError(f"the least score is {score.min()}, must be 0 or more: chains are cut at the limit")
    limit = min(limit, int(score.max(axis=(1, 2)).sum()))
    choices = cost.shape[2]
    reached = np.full((choices, limit + 1), np.inf)
    reached[0, 0] = 0.0
    before = np.zeros((len(cost), choices, limit + 1), np.uint8)
    for position in range(len(cost)):
        reached = _advance(reached, cost[position], score[position], before[position])
    left = int(reached.min(axis=0).argmin())
    choice = int(reached[:, left].argmin())
    if not np.isfinite(reached[choice, left]):
        return None
    path: list[int] = []
    for position in range(len(cost) - 1, -1, -1):
        path.append(choice)
        source = int(before[position, choice, left])
        left -= int(score[position, source, choice])
        choice = source
    return tuple(reversed(path))


def _advance(reached: Floats, cost: Floats, score: Integers, before: NDArray[np.uint8]) -> Floats:
    """The least cost by choice and score one position on; ``before`` is told by which choice."""
    onward = np.full(reached.shape, np.inf)
    width = reached.shape[1]
    for target in range(cost.shape[1]):
        for source in range(cost.shape[0]):
            step = int(score[source, target])
            if step >= width:
                continue
            ways = reached[source, : width - step] + cost[source, target]
            cheaper = ways < onward[target, step:]
            np.copyto(onward[target, step:], ways, where=cheaper)
            before[target, step:][cheaper] = source
    return onward
