"""The `fashion_transformer` workload: a small transformer on the images of `workloads.fashion_mnist`.

A vision transformer (A. Dosovitskiy et al., 2021, arXiv:2010.11929) of two blocks that sees an image as 16
patches; normalisation comes before each block (R. Xiong et al., 2020, arXiv:2002.04745), which trains without
warm-up tricks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import classifier_training as training
from workloads.fashion_mnist import CLASSES, read_splits
from workloads.trained import trained_classifier
from workloads.workload import Workload

BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-4

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
    """Make the workload, training its model unless the cache has it.

    Args:
        seed: Fixes the splits and the training.
        calibrate: Samples of this split, out of the official training images.
        search: Samples of this split, likewise.
        certify: Samples of this split, likewise; what remains is trained on.
        epochs: Passes over the training samples.
        cache_dir: Folder that keeps trained weights and downloaded files.
        data_dir: Folder with the four idx files, as they are or with ``.gz``; None to look for them.
        batch_size: Samples a batch when the model is evaluated.

    Raises:
        DataError: If the data are not found, are damaged, or the splits do not fit into them.
        OutputError: If the trained weights or the downloaded files cannot be kept.
    """
    folder = Path(cache_dir)
    splits = read_splits(
        {"calibrate": calibrate, "search": search, "certify": certify}, seed, data_dir, folder
    )
    hyperparameters: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "seed": seed,
    }

    model = trained_classifier(
        "fashion_transformer", FashionTransformer, splits["train"], folder, hyperparameters,
        Block, Attention, FeedForward,
        progress=training.log_progress,
        sizes=[PATCH, WIDTH, FFN_WIDTH, HEADS],
    )  # fmt: skip
    return Workload(
        name="fashion_transformer",
        model=model,
        splits=splits,
        classes=CLASSES,
        batch_size=batch_size,
        description="transformer (14 layers, 72 k parameters) on 28 x 28 images of clothes",
    )


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
        self.attention = Attention()
        self.ffn_norm = nn.LayerNorm(WIDTH)
        self.ffn = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        output: Tensor = x + self.ffn(self.ffn_norm(x))
        return output


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        query, key, value = (_heads(y) for y in (self.query(x), self.key(x), self.value(x)))
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, on each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, FFN_WIDTH)
        self.down = nn.Linear(FFN_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        output: Tensor = self.down(F.gelu(self.up(x)))
        return output


def _heads(y: Tensor) -> Tensor:
    """(batch, tokens, width) as (batch, heads, tokens, width / heads)."""
    return torch.unflatten(y, -1, (HEADS, -1)).transpose(1, 2)
