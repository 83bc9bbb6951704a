"""Workloads whose models return their logits in whatever shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workloads.workload import SPLITS, Split, Workload


class Shaped(nn.Module):
    """A linear model whose output ``shape`` makes of its logits what users' models return."""

    def __init__(self, shape: Any, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.shape = nn.Linear(4, classes), shape

    def forward(self, x: Tensor) -> Any:
        """Map (samples, 4) to whatever ``shape`` makes of (samples, classes)."""
        return self.shape(self.head(x))


def workload(shape: Any, outputs: int = 2, classes: int = 2) -> Workload:
    """A workload whose labels are what the model's logits say, before they are shaped."""
    model = Shaped(shape, outputs).eval()
    splits = {}
    for seed, name in enumerate(SPLITS[1:]):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = model.head(x)
        labels = (logits[:, 0] > 0).long() if outputs == 1 else logits.argmax(1)
        splits[name] = Split(x, labels)
    return Workload("made", model, splits, tuple(map(str, range(classes))), 25, "")
