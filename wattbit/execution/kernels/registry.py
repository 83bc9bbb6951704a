"""Which kernel runs a layer at a precision: a native one where the device has it, else an emulated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.numerics import AffineQuantizer
from wattbit.precision import Precision

Kernel = Callable[[Tensor], Tensor]
"""A layer packed for one precision: input activations in, output activations out, both float32.

One that emits codes (see `NativeKernel`) writes uint8 instead, for the kernel it is linked to.
"""


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
        supports: Asks the device whether it can run this layer at this precision; never assumes.
        pack: Prepares the layer.
        pack_emitting: Prepares it to write codes for a layer that this kernel also runs, which its kernels
            then also read; None if it cannot.
    """

    name: str
    supports: Callable[[torch.device, LayerWeights, Precision], bool]
    pack: Pack
    pack_emitting: PackEmitting | None = None


@dataclass(frozen=True, slots=True)
class PackedKernel:
    """A packed kernel and how it runs: ``name`` of the native kernel, or None if it is emulated."""

    run: Kernel
    native: str | None


def find_native(layer: LayerWeights, precision: Precision) -> NativeKernel | None:
    """The first native kernel that runs ``layer`` at ``precision`` on the layer's device, or None."""
    from wattbit.execution.kernels.cpu import CPU_KERNELS
    from wattbit.execution.kernels.cuda import CUDA_KERNELS

    device = layer.weight.device
    kernels = (*CPU_KERNELS, *CUDA_KERNELS)
    return next((kernel for kernel in kernels if kernel.supports(device, layer, precision)), None)


def pack(
    layer: LayerWeights, precision: Precision, calibration: LayerCalibration, *, native: bool
) -> PackedKernel:
    """Pack ``layer`` for ``precision``: natively if ``native`` and the device can, else emulated."""
    from wattbit.execution.kernels.emulated import pack_emulated

    kernel = find_native(layer, precision) if native else None
    if kernel is None:
        return PackedKernel(pack_emulated(layer, precision, calibration), None)
    return PackedKernel(kernel.pack(layer, precision, calibration), kernel.name)
