"""The shadow watch: how often batches are shadowed, what disagreement is, when it alarms."""

from __future__ import annotations

import pytest
import torch

from wattbit.serving.shadow import ShadowWatch, disagreement


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.7, 1.0])
def test_the_share_of_shadowed_batches_is_the_one_asked_for(share: float) -> None:
    watch = ShadowWatch(share, 0.7, 0.01)
    due = [watch.due() for _ in range(1000)]
    assert sum(due) == round(1000 * share)
    assert due[0] == (share >= 0.5), "a process that runs few batches pays for no shadow"
    if share == 0.5:
        assert due == [True, False] * 500


def test_the_alarm_needs_evidence_and_forgets_it_on_reset() -> None:
    watch = ShadowWatch(1.0, 0.7, 0.01)
    assert watch.limit_pp == 0.7
    assert not watch.observe([False] * 500)
    assert not watch.observe([True])
    watch.observe([True] * 40)
    assert watch.observe([True] * 40)
    assert watch.observe([False] * 10), "an alarm is not taken back by what comes later"
    watch.reset()
    assert not watch.observe([False])


def test_disagreement_is_told_for_each_sample() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert disagreement(a, a) == [False, False, False]
    assert disagreement(a, a.flip(1)) == [True, True, True]
    assert disagreement((a, None), {"logits": torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0]])}) == [
        False,
        True,
        False,
    ]
    assert disagreement(a[:0], a[:0]) == []


def test_one_position_that_differs_makes_a_sample_differ() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    other = pixels.clone()
    other[1, 2, 0, 0] = 1.0
    assert disagreement(pixels, other) == [False, True]
