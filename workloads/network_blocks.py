"""Building blocks that the workloads' networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        if stride != 1 or in_channels != out_channels:
            self.shortcut: nn.Conv2d | None = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut_bn: nn.BatchNorm2d | None = nn.BatchNorm2d(out_channels)
        else:
            self.shortcut = self.shortcut_bn = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, h, w) to (batch, out_channels, h / stride, w / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x))
        output: Tensor = self.relu2(x + y)
        return output


class Attention(nn.Module):
    """Multi-head self-attention; the heads share ``width`` evenly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Map (batch, tokens, width) to the same shape; tokens look at ``visible`` ones, by default all."""
        query, key, value = (self._split(y) for y in (self.query(x), self.key(x), self.value(x)))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) as (batch, heads, tokens, width / heads)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, on each token by itself."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, ffn_width)
        self.down = nn.Linear(ffn_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        output: Tensor = self.down(F.gelu(self.up(x)))
        return output
