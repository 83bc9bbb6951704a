"""Kernels: how a layer runs at a precision, natively or emulated, behind one registry."""

from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.registry import Kernel, PackedKernel, find_native, pack

__all__ = ["Kernel", "LayerWeights", "PackedKernel", "find_native", "pack"]
