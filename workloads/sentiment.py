"""The `sentiment` workload: a small transformer that tells whether a sentence of a film review is positive.

The encoder all-MiniLM-L6-v2 (`workloads.minilm`) is fine-tuned with a linear head on sentences that people
rated (`workloads.sentiment_data`). Training takes minutes, once.
"""

from __future__ import annotations

import torch
from torch import nn

from wattbit.profiling.sensitivity import SensitivityMethod
from workloads import minilm, sentiment_data
from workloads.classifier_training import log_progress, seeded
from workloads.fine_tuning import fine_tune
from workloads.sentiment_net import EncoderSize, SentimentNet
from workloads.splits import make_splits
from workloads.trained import trained_network
from workloads.workload import Workload

SIZE = EncoderSize()
LENGTH = 56
"""Tokens of every input: 99.4 % of the sentences fit, the longest has 79, the mean is 27."""

BATCH_SIZE = 32
LEARNING_RATE = 5e-5


def load(
    seed: int,
    calibrate: int,
    search: int,
    certify: int,
    test: int,
    epochs: int,
    cache_dir: str,
    data_dir: str | None,
    batch_size: int,
    sensitivity: SensitivityMethod = "gradient",
) -> Workload:
    """Make the workload, training its model unless the cache has it.

    Args:
        seed: Fixes the splits and the training.
        calibrate: Samples of this split.
        search: Samples of this split.
        certify: Samples of this split.
        test: Samples of this split; what remains of the 10,566 is trained on.
        epochs: Passes over the training samples.
        cache_dir: Folder that keeps trained weights; looked in for the data, too.
        data_dir: Folder to look for the data in first; None for no such folder.
        batch_size: Samples a batch when the model is evaluated.
        sensitivity: How a profile finds sensitivities; ``direct`` runs each of 37 layers at each
            precision, on all of ``calibrate``.

    Raises:
        DataError: If the encoder or the data are not on this machine, or the splits do not fit into the data;
            the message holds the command that gets what is missing.
        OutputError: If the trained weights cannot be kept.
    """
    sentences, labels = sentiment_data.read_sentences(data_dir, cache_dir)
    inputs = minilm.tokenized(sentences, LENGTH)
    sizes = {"calibrate": calibrate, "search": search, "certify": certify, "test": test}
    splits = make_splits(inputs, torch.tensor(labels), sizes, seed)
    return Workload(
        name="sentiment",
        model=trained_network(
            _network, splits["train"], cache_dir, log_progress,
            train=fine_tune, pretrained=pretrained, sources=(minilm,),
            epochs=epochs, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, weight_decay=0.01, seed=seed,
        ),
        splits=splits,
        classes=sentiment_data.CLASSES,
        batch_size=batch_size,
        description="MiniLM-L6 encoder (37 linear layers, 23 M parameters) on sentences of film reviews",
        sensitivity=sensitivity,
        trim_padding=True,
    )  # fmt: skip


def pretrained(seed: int) -> nn.Module:
    """The pretrained encoder with a random head that depends on ``seed`` alone; its embeddings are frozen.

    Few of the 30,522 words are in the data, so that training the others' embeddings would be time lost.

    Raises:
        DataError: If the encoder is not on this machine, or damaged.
    """
    model = seeded(_network, seed)
    encoder = model.get_submodule("encoder")
    encoder.load_state_dict(minilm.encoder_state(minilm.checkpoint(), SIZE.layers))
    for name in ("word", "position", "norm"):
        encoder.get_submodule(name).requires_grad_(False)
    return model


def _network() -> nn.Module:
    return SentimentNet(SIZE, len(sentiment_data.CLASSES))
