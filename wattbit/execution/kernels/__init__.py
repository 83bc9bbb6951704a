"""Kernels: how a layer runs at a precision, natively or emulated."""

# Loaded to be registered, in the order in which they are asked.
from wattbit.execution.kernels import cpu as cpu
from wattbit.execution.kernels import cuda_float as cuda_float
from wattbit.execution.kernels import cuda_low_bit as cuda_low_bit
from wattbit.execution.kernels.kernel import Kernel, PackedKernel
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.pack_layer import pack
from wattbit.execution.kernels.registry import find_native

__all__ = ["Kernel", "LayerWeights", "PackedKernel", "find_native", "pack"]
