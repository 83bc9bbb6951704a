"""Packing a layer for a precision: natively where the device has a kernel for it, else emulated."""

from __future__ import annotations

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.execution.kernels.kernel import PackedKernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.registry import find_native
from wattbit.precision import Precision


def pack(
    layer: LayerWeights, precision: Precision, calibration: LayerCalibration, *, native: bool
) -> PackedKernel:
    """Pack ``layer`` for ``precision``: natively if ``native`` and the device can, else emulated."""
    kernel = find_native(layer, precision) if native else None
    if kernel is None:
        return PackedKernel(pack_emulated(layer, precision, calibration), None)
    return PackedKernel(kernel.pack(layer, precision, calibration), kernel.name)
