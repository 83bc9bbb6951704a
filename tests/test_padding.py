"""Sentences in batches of like length: each comes once, with its own label, and without needless padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wattbit.model_inputs import call_model, num_samples
from workloads.classifier_training import seeded
from workloads.padding import batches_by_length
from workloads.sentiment_net import EncoderSize, SentimentNet
from workloads.workload import Split

WIDTH = 12


def sentences(lengths: list[int]) -> Split:
    """Sentence ``i`` consists of the token ``i``, and its label is ``i``."""
    numbers = torch.arange(len(lengths))
    mask = (torch.arange(WIDTH) < torch.tensor(lengths)[:, None]).long()
    return Split({"input_ids": numbers[:, None] * mask, "attention_mask": mask}, numbers)


@given(st.lists(st.integers(1, WIDTH), min_size=1, max_size=20), st.integers(1, 6))
def test_every_sentence_comes_once_with_its_label_and_all_of_its_tokens(
    lengths: list[int], batch_size: int
) -> None:
    parts, labels = batches_by_length(sentences(lengths), batch_size)
    found: list[tuple[int, int]] = []
    for part in parts:
        assert isinstance(part, dict)
        assert num_samples(part) <= batch_size
        ids, mask = part["input_ids"], part["attention_mask"]
        assert ids.shape == mask.shape
        assert int(mask.sum(1).max()) == mask.shape[1]  # no column is padding alone
        found += zip(ids.amax(1).tolist(), mask.sum(1).tolist(), strict=True)
    assert found == [(label, lengths[label]) for label in labels.tolist()]
    assert sorted(labels.tolist()) == list(range(len(lengths)))
    assert [length for _, length in found] == sorted(lengths)


def test_what_has_no_mask_is_cut_in_its_order() -> None:
    split = Split(torch.arange(5.0)[:, None], torch.arange(5))
    parts, labels = batches_by_length(split, 2)
    assert [part.flatten().tolist() for part in parts if isinstance(part, Tensor)] == [[0, 1], [2, 3], [4]]
    assert labels is split.labels


def test_padding_before_the_sentences_is_kept() -> None:
    split = sentences([2, 3])
    assert isinstance(split.inputs, dict)
    turned = {name: tensor.flip(1) for name, tensor in split.inputs.items()}
    [part], _ = batches_by_length(Split(turned, split.labels), 2)
    assert isinstance(part, dict)
    assert part["input_ids"].shape == (2, WIDTH)


def test_inputs_of_another_shape_than_the_mask_are_left_alone() -> None:
    split = sentences([2, 3])
    assert isinstance(split.inputs, dict)
    between = {**split.inputs, "bias": torch.zeros(2, WIDTH, WIDTH)}
    [part], labels = batches_by_length(Split(between, split.labels), 2)
    assert isinstance(part, dict)
    assert part["input_ids"].shape == (2, WIDTH)
    assert labels is split.labels


def test_a_transformer_says_the_same_of_a_sentence_with_and_without_padding() -> None:
    size = EncoderSize(layers=1, width=16, ffn_width=32, heads=2, vocabulary=16, positions=WIDTH)
    net = seeded(lambda: SentimentNet(size, 2), 0).eval()
    split = sentences([12, 3, 7, 1, 5])
    with torch.inference_mode():
        parts, labels = batches_by_length(split, 2)
        cut = torch.cat([call_model(net, part) for part in parts])
        torch.testing.assert_close(cut, call_model(net, split.inputs)[labels])
