"""The network of the `sentiment` workload: a MiniLM encoder, mean pooling and a linear head.

The encoder is BERT's (J. Devlin et al., 2019, arXiv:1810.04805) in the size of MiniLM-L6 (W. Wang et al.,
2020, arXiv:2002.10957). Its layers are named by their role, so that a plan can speak of all of one kind:
``encoder.layer0.attention.query``, ``.key``, ``.value``, ``.output``, ``encoder.layer0.ffn.up``, ``.down``.
Every linear layer is called as a module, and the whole can be traced by `torch.fx`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads.network_blocks import Attention, FeedForward


@dataclass(frozen=True, slots=True)
class EncoderSize:
    """The dimensions of an encoder; by default those of MiniLM-L6.

    Attributes:
        layers: Number of encoder layers.
        width: Values that stand for one token.
        ffn_width: Values between the two layers of a feed-forward block.
        heads: Attention heads; they share ``width`` evenly.
        vocabulary: Number of different tokens.
        positions: The most tokens of one sentence.
    """

    layers: int = 6
    width: int = 384
    ffn_width: int = 1536
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512


# Added to a variance before the root is taken; BERT's value.
_EPSILON = 1e-12


class SentimentNet(nn.Module):
    """An encoder, the mean over a sentence's tokens, and a linear layer to the classes."""

    def __init__(self, size: EncoderSize, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.head = nn.Linear(size.width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map token numbers and mask (0: padding), both (batch, tokens), to logits (batch, classes)."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean of the encoder's output over the tokens that are not padding, (batch, width)."""
        weight = attention_mask.to(torch.float32).unsqueeze(-1)
        tokens: Tensor = self.encoder(input_ids, attention_mask)
        return (tokens * weight).sum(1) / weight.sum(1)


class Encoder(nn.Module):
    """Embeddings, then layers ``layer0``, ``layer1`` and so on."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.word = nn.Embedding(size.vocabulary, size.width)
        self.position = nn.Embedding(size.positions, size.width)
        self.norm = nn.LayerNorm(size.width, _EPSILON)
        self._layer_names = [f"layer{index}" for index in range(size.layers)]
        for name in self._layer_names:
            self.add_module(name, EncoderLayer(size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map token numbers and mask, both (batch, tokens), to (batch, tokens, width)."""
        # Counted from the tensor itself, because a tracer cannot see a length.
        positions = torch.ones_like(input_ids[0]).cumsum(0) - 1
        x: Tensor = self.norm(self.word(input_ids) + self.position(positions))
        visible = attention_mask.to(torch.bool)[:, None, None, :]
        for name in self._layer_names:
            x = self.get_submodule(name)(x, visible)
        return x


class EncoderLayer(nn.Module):
    """Attention and a feed-forward block, each beside a shortcut and before a normalisation."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.attention = Attention(size.width, size.heads)
        self.attention_norm = nn.LayerNorm(size.width, _EPSILON)
        self.ffn = FeedForward(size.width, size.ffn_width)
        self.ffn_norm = nn.LayerNorm(size.width, _EPSILON)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape; ``visible`` is (batch, 1, 1, tokens) bool."""
        x = self.attention_norm(x + self.attention(x, visible))
        output: Tensor = self.ffn_norm(x + self.ffn(x))
        return output
