"""The `fashion_transformer` workload: a small transformer on the images of `workloads.fashion_mnist_data`.

A vision transformer (A. Dosovitskiy et al., 2021, arXiv:2010.11929) of two blocks that sees an image as 16
patches; normalisation comes before each block (R. Xiong et al., 2020, arXiv:2002.04745), which trains without
warm-up tricks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from workloads.classifier_training import log_progress
from workloads.fashion_mnist_data import CLASSES, read_splits
from workloads.network_blocks import Attention, FeedForward
from workloads.trained import trained_network
from workloads.workload import Workload

PATCH = 7
PATCHES = (28 // PATCH) ** 2
WIDTH = 64
FFN_WIDTH = 128
HEADS = 4


def load(
    seed: int,
    calibrate: int,
    search: int,
    certify: int,
    epochs: int,
    cache_dir: str,
    data_dir: str | None,
    batch_size: int,
) -> Workload:
    """Make the workload; arguments and errors are those of `workloads.fashion_mnist.load`."""
    sizes = {"calibrate": calibrate, "search": search, "certify": certify}
    splits = read_splits(sizes, seed, data_dir, Path(cache_dir))
    return Workload(
        name="fashion_transformer",
        model=trained_network(
            FashionTransformer, splits["train"], cache_dir, log_progress,
            epochs=epochs, batch_size=64, learning_rate=0.1, weight_decay=1e-4, seed=seed,
        ),
        splits=splits,
        classes=CLASSES,
        batch_size=batch_size,
        description="transformer (14 layers, 72 k parameters) on 28 x 28 images of clothes",
    )  # fmt: skip


class FashionTransformer(nn.Module):
    """Patches with learned positions, two blocks, and a linear layer on the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
        self.block1 = Block()
        self.block2 = Block()
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 1, 28, 28) to logits (batch, 10)."""
        rows = x.reshape(-1, 28 // PATCH, PATCH, 28 // PATCH, PATCH)
        patches = rows.transpose(2, 3).reshape(-1, PATCHES, PATCH * PATCH)
        tokens = self.block2(self.block1(self.embed(patches) + self.position))
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


class Block(nn.Module):
    """Attention and a feed-forward block, each after a normalisation and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention(WIDTH, HEADS)
        self.ffn_norm = nn.LayerNorm(WIDTH)
        self.ffn = FeedForward(WIDTH, FFN_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        output: Tensor = x + self.ffn(self.ffn_norm(x))
        return output
