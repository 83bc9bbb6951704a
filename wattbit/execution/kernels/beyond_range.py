"""Inputs that no quantizer can stand for: what is not finite, or far beyond everything calibration has seen.

A quantizer saturates, and a finite answer would hide that the reference overflows. So such values are
multiplied in float32 with the layer's own weights, and added to what the kernel makes of the others: the
output is then infinite or NaN exactly where the reference's is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wattbit.execution.kernels.kernel import Kernel
from wattbit.execution.kernels.layer_weights import LayerWeights

LARGEST = torch.finfo(torch.float32).max
_FAR = 2.0**40


def farthest(absmax: float) -> float:
    """The largest magnitude that a kernel calibrated up to ``absmax`` may saturate."""
    return min(_FAR * absmax, LARGEST) if absmax else LARGEST


def guarded(kernel: Kernel, layer: LayerWeights, limit: float = LARGEST) -> Kernel:
    """``kernel`` for inputs of any size, those above ``limit`` included."""

    def run(x: Tensor) -> Tensor:
        # The sum tells in one pass, where a test of every value would take longer than quantizing it does.
        if abs(float(x.detach().sum())) <= limit:
            return kernel(x)
        return run_split(kernel, layer, x, limit)

    return run


def run_split(kernel: Kernel, layer: LayerWeights, x: Tensor, limit: float = LARGEST) -> Tensor:
    """``kernel`` on what is within ``limit``, plus the products of the rest."""
    within = x.abs() <= limit
    rest = layer.multiply(x.masked_fill(within, 0.0), layer.weight)
    return kernel(x.masked_fill(~within, 0.0)) + rest
