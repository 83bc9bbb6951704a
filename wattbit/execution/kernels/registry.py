"""The native kernels there are. To add one, decorate what prepares a layer for it with `native_kernel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wattbit.execution.kernels.kernel import NativeKernel, Pack, PackEmitting, Supports
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.precision import Precision

AnyPack = TypeVar("AnyPack", bound=Pack)

NATIVE_KERNELS: list[NativeKernel] = []
"""Every native kernel, in the order in which they are asked."""


def native_kernel(
    name: str, supports: Supports, pack_emitting: PackEmitting | None = None
) -> Callable[[AnyPack], AnyPack]:
    """Register the decorated function as the ``pack`` of a `NativeKernel`; the arguments are its others."""

    def register(pack: AnyPack) -> AnyPack:
        NATIVE_KERNELS.append(NativeKernel(name, supports, pack, pack_emitting))
        return pack

    return register


def find_native(layer: LayerWeights, precision: Precision) -> NativeKernel | None:
    """The first native kernel that runs ``layer`` at ``precision`` on the layer's device, or None."""
    device = layer.weight.device
    return next((kernel for kernel in NATIVE_KERNELS if kernel.supports(device, layer, precision)), None)
