"""What a kernel is: a layer prepared for one precision, and the ways to prepare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import AffineQuantizer
from wattbit.precision import Precision

Kernel = Callable[[Tensor], Tensor]
"""A layer packed for one precision: input activations in, output activations out, both float32.

One that emits codes (see `NativeKernel`) writes uint8 instead, for the kernel it feeds.
"""


Supports = Callable[[torch.device, LayerWeights, Precision], bool]
"""Asks a device whether it can run a layer at a precision; never assumes."""


class Pack(Protocol):
    """Prepares a layer for one precision, once; the kernel it returns is then called for every batch."""

    def __call__(self, layer: LayerWeights, precision: Precision, calibration: LayerCalibration, /) -> Kernel:
        """Return the packed kernel."""


class PackEmitting(Protocol):
    """Prepares a layer whose output is quantized for the one layer that reads it."""

    def __call__(
        self,
        layer: LayerWeights,
        precision: Precision,
        calibration: LayerCalibration,
        reader: AffineQuantizer,
        /,
        *,
        relu: bool,
    ) -> Kernel:
        """Return the kernel; it writes ``reader``'s codes, of the output after a ReLU if ``relu``."""


@dataclass(frozen=True, slots=True)
class NativeKernel:
    """A way to run some layers natively.

    Attributes:
        name: For people, such as ``"onednn int8"``.
        supports: Whether a device runs a layer at a precision with it.
        pack: Prepares the layer.
        pack_emitting: Prepares it to write codes for a layer that this kernel also runs, which its kernels
            then also read; None if it cannot.
    """

    name: str
    supports: Supports
    pack: Pack
    pack_emitting: PackEmitting | None = None


@dataclass(frozen=True, slots=True)
class PackedKernel:
    """A packed kernel and how it runs.

    Attributes:
        run: The kernel.
        native: Name of the native kernel, or None if it is emulated.
        readers: The modules that alone may read what it writes, one after the other: the BatchNorm that is
            folded in.
        code_readers: The same where it writes codes: up to the layer that reads them.
    """

    run: Kernel
    native: str | None
    readers: tuple[nn.Module, ...] = ()
    code_readers: tuple[nn.Module, ...] = ()
