"""Fine-tune a pretrained text classifier on one split: AdamW with a warm-up and a cosine.

Batches hold sentences of similar length and are cut to their longest one, which halves the time. As in
`workloads.classifier_training`, randomness comes from generators seeded here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.errors import ConfigError
from wattbit.model_inputs import call_model, logits_of
from workloads.classifier_training import EpochProgress, parameter_groups, report_epoch, set_learning_rate
from workloads.workload import Split

WARM_UP = 0.1
"""Share of the training in which the learning rate rises to its peak."""

BATCHES_SORTED_TOGETHER = 16
"""More make the batches more even in length and less random."""


def fine_tune(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    progress: EpochProgress | None = None,
) -> nn.Module:
    """Train those parameters of ``model`` that require a gradient, in place, and return it in eval mode.

    Args:
        model: Takes ``input_ids`` and ``attention_mask``, returns logits of shape (batch, classes).
        split: The samples to train on; their inputs are a dict of these two, both (samples, tokens).
        epochs: Passes over the split, at least 1.
        batch_size: Samples a step, at least 1; an epoch leaves out what remains after its last full batch.
        learning_rate: The peak.
        weight_decay: Decoupled decay of weights; biases and normalisation layers have none.
        seed: Fixes the order of samples.
        progress: Told of each finished epoch.

    Raises:
        ConfigError: If ``epochs`` or ``batch_size`` is too small.
        ModelError: If the loss stops being finite.
    """
    if epochs < 1 or batch_size < 1:
        raise ConfigError(f"epochs={epochs}, batch_size={batch_size}: fine-tuning needs at least 1 of each")
    batch_size = min(batch_size, len(split))
    inputs = _mapping(split)
    lengths = inputs["attention_mask"].sum(1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), learning_rate)
    model.train()
    for epoch in range(epochs):
        order = batches_of_similar_length(lengths, batch_size, generator)
        losses = []
        for step, index in enumerate(order):
            done = (epoch + (step + 0.5) / len(order)) / epochs
            set_learning_rate(optimizer, learning_rate, WARM_UP, done)
            longest = int(lengths[index].max())
            batch = {name: tensor[index, :longest] for name, tensor in inputs.items()}
            loss = F.cross_entropy(logits_of(call_model(model, batch)), split.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        report_epoch(epoch + 1, epochs, losses, progress)
    return model.eval()


def batches_of_similar_length(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Share samples out to full batches at random, such that those of one batch are of similar length.

    Args:
        lengths: Tokens of each sample, shape (samples,).
        batch_size: Samples of each batch.
        generator: Draws the order.

    Returns:
        The batches in random order, each as indices of shape (batch_size,); no sample is in two of them.
    """
    order = torch.randperm(len(lengths), generator=generator)
    order = order[: len(order) // batch_size * batch_size]
    batches: list[Tensor] = []
    for part in torch.split(order, batch_size * BATCHES_SORTED_TOGETHER):
        batches += torch.split(part[lengths[part].argsort(stable=True)], batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _mapping(split: Split) -> dict[str, Tensor]:
    if not isinstance(split.inputs, dict) or "attention_mask" not in split.inputs:
        raise ConfigError(
            "fine-tuning needs inputs with an attention_mask; give a dict of input_ids and attention_mask"
        )
    return split.inputs
