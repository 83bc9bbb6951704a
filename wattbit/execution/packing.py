"""Packed layers: each layer at each precision, packed once, at first use, whichever thread comes first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from wattbit.calibration import Calibration, LayerCalibration, integer_widths
from wattbit.errors import ModelError, PrecisionError
from wattbit.execution.discovery import FoundLayer
from wattbit.execution.int8_chaining import Int8Chain
from wattbit.execution.kernels import PackedKernel, find_native, pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision, precision

REFERENCE = "fp32"

Kernels = tuple[PackedKernel | None, ...]
"""One kernel per switchable layer; None runs the original module."""

# Plans whose kernels are kept together; assembling them again costs microseconds a layer, packing nothing.
_PLANS_KEPT = 256


class PackedLayers:
    """The kernels of a model's layers.

    Args:
        found: The layers, in execution order.
        precisions: The precisions on offer.
        native: Use native kernels where the device has them.
        chains: Layers that only one other layer reads. Where one native kernel runs both, the first writes
            its output in the codes of the second.
    """

    def __init__(
        self,
        found: Sequence[FoundLayer],
        precisions: Sequence[Precision],
        *,
        native: bool,
        chains: Sequence[Int8Chain] = (),
    ) -> None:
        self._chains = tuple(chains)
        self._chained: dict[tuple[Int8Chain, str, str], PackedKernel | None] = {}
        self._found = tuple(found)
        with torch.inference_mode(False):
            self._weights = {f.shape.name: take_weights(f.module, f.batch_norm) for f in found}
        self._names = tuple(self._weights)
        self._precisions = tuple(precisions)
        self._native = native
        self._calibration: dict[str, LayerCalibration] = {}
        self._packed: dict[tuple[str, str], PackedKernel] = {}
        self._plans: dict[PrecisionPlan, Kernels] = {}
        self._lock = threading.Lock()

    @property
    def calibration(self) -> Calibration:
        """Calibrated input ranges by layer name; empty before `load`."""
        return self._calibration

    def load(self, calibration: Calibration) -> None:
        """Use ``calibration`` from now on; what was packed with another one is dropped.

        Raises:
            ModelError: If it lacks a layer, or the ranges for a width that is on offer.
        """
        widths = integer_widths(self._precisions)
        for name in self._names:
            if name not in calibration:
                raise ModelError(f"calibration lacks layer {name!r}; calibrate this model again")
            lacking = [bits for bits in widths if bits not in calibration[name].affine]
            if lacking:
                raise ModelError(
                    f"calibration of layer {name!r} lacks {lacking[0]}-bit activations; "
                    "calibrate again with all precisions on offer"
                )
        with self._lock:
            self._calibration = {name: calibration[name] for name in self._names}
            self._packed.clear()
            self._chained.clear()
            self._plans.clear()

    def drop(self) -> None:
        """Free what is packed; what is used again is packed again."""
        with self._lock:
            self._packed.clear()
            self._chained.clear()
            self._plans.clear()

    def kernels(self, plan: PrecisionPlan) -> Kernels:
        """The kernels of ``plan``, packed if they are not yet.

        Raises:
            PlanError: If the plan is for another model.
            PrecisionError: If it uses a precision that is not on offer.
            ModelError: If there is no calibration yet.
        """
        kernels = self._plans.get(plan)
        if kernels is None:
            ordered = plan.require_layers(self._names)
            with self._lock:
                packed = [
                    None if name == REFERENCE else self._pack_once(layer, name)
                    for layer, name in ordered.items()
                ]
                for chain in self._chains:
                    chained = self._chain_once(chain, *(ordered[self._names[i]] for i in chain.layers))
                    packed[chain.producer] = chained or packed[chain.producer]
                kernels = tuple(packed)
                if len(self._plans) >= _PLANS_KEPT:
                    self._plans.clear()
                self._plans[plan] = kernels
        return kernels

    def kernel(self, layer_index: int, name: str) -> PackedKernel:
        """The kernel of one layer at a precision other than the reference; raises as `kernels`."""
        with self._lock:
            return self._pack_once(self._names[layer_index], name)

    def native_kernel(self, layer_index: int, name: str) -> str | None:
        """Name of the native kernel that runs a layer at a precision; None if it is emulated."""
        if name == REFERENCE:
            return "torch"
        weights = self._weights[self._names[layer_index]]
        kernel = find_native(weights, precision(name)) if self._native else None
        return kernel.name if kernel else None

    def _pack_once(self, layer: str, name: str) -> PackedKernel:
        if (layer, name) not in self._packed:
            wanted = precision(name)
            if wanted not in self._precisions:
                offered = ", ".join(p.name for p in self._precisions)
                raise PrecisionError(f"precision {name!r} is not on offer for this model; it has {offered}")
            if not self._calibration:
                raise ModelError("the model is not calibrated: call calibrate() with some batches first")
            # Whatever mode the caller is in, the packed tensors serve every later mode.
            with torch.inference_mode(False), torch.no_grad():
                packed = pack(self._weights[layer], wanted, self._calibration[layer], native=self._native)
            self._packed[layer, name] = replace(packed, readers=self._readers(self._names.index(layer)))
        return self._packed[layer, name]

    def _chain_once(self, chain: Int8Chain, written: str, read: str) -> PackedKernel | None:
        """The producer's kernel that writes the consumer's codes; None where they do not speak the same."""
        key = (chain, written, read)
        if key not in self._chained:
            self._chained[key] = self._pack_chained(chain, written, read)
        return self._chained[key]

    def _pack_chained(self, chain: Int8Chain, written: str, read: str) -> PackedKernel | None:
        if not self._native or REFERENCE in (written, read):
            return None
        producer, consumer = (self._names[index] for index in chain.layers)
        kernel = find_native(self._weights[producer], precision(written))
        if kernel is None or kernel.pack_emitting is None:
            return None
        if find_native(self._weights[consumer], precision(read)) is not kernel:
            return None
        reader = self._calibration[consumer].affine[precision(read).activation_bits]
        with torch.inference_mode(False), torch.no_grad():
            run = kernel.pack_emitting(
                self._weights[producer],
                precision(written),
                self._calibration[producer],
                reader,
                relu=chain.relu is not None,
            )
        readers = self._readers(chain.producer)
        relu = () if chain.relu is None else (chain.relu,)
        return PackedKernel(run, kernel.name, readers, (*readers, *relu, self._found[chain.consumer].module))

    def _readers(self, layer_index: int) -> tuple[nn.Module, ...]:
        norm = self._found[layer_index].batch_norm
        return () if norm is None else (norm,)
