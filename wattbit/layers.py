"""Switchable layers: a model whose layers change precision between batches, and the way back.

A switchable layer keeps its module, its parameters and its name; only its ``forward`` is replaced while the
model is attached. Each layer packs a precision once, at first use. Which kernels are in force is one tuple,
so a switch replaces one reference, whatever the number of layers, and a batch that has begun keeps the
tuple it began with: switching is atomic between batches, also when several threads run batches.

BatchNorm layers that directly follow a convolution are folded into its packed weights. At the reference
precision the original convolution and the original BatchNorm run, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from wattbit.batches import Inputs, call_model, logits_of
from wattbit.calibration import ActivationObserver, Calibration, LayerCalibration, integer_widths
from wattbit.discovery import find_layers, foldable, require_finite_weights
from wattbit.errors import ModelError, PrecisionError
from wattbit.kernels import LayerWeights, PackedKernel, find_native, pack
from wattbit.kernels.layer_weights import take_weights
from wattbit.patching import ForwardPatches
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision, parse_precisions, precision
from wattbit.profile import LayerShape

Kernels = tuple[PackedKernel | None, ...]
"""One kernel per switchable layer; None runs the original module."""

REFERENCE = "fp32"


class SwitchableModel:
    """A model whose layers can run at any of ``precisions``, switched between batches.

    Args:
        model: The model; its parameters are never changed. Put in eval mode while attached.
        example: A small batch of real inputs; it shows which layers run, in which order, on which shapes.
        precisions: Names of the precisions to offer besides the reference.
        native: Use native kernels where the device has them; False emulates everything.

    Raises:
        ModelError: If a weight is NaN or infinite, or no layer can switch.
        PrecisionError: If a precision is unknown.
    """

    def __init__(
        self, model: nn.Module, example: Inputs, precisions: Iterable[str], *, native: bool = True
    ) -> None:
        require_finite_weights(model)
        names = list(dict.fromkeys([REFERENCE, *precisions]))
        self._precisions = parse_precisions(names)
        self._model = model
        self._native = native
        self._calibration: Calibration = {}
        self._variants: dict[tuple[int, str], PackedKernel] = {}
        self._assignments: dict[PrecisionPlan, Kernels] = {}
        self._pack_lock = threading.Lock()
        self._local = threading.local()
        self._was_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            self._found = foldable(model, example, find_layers(model, example))
        except BaseException:
            self._restore_training()
            raise
        self._shapes = tuple(found.shape for found in self._found)
        self._weights: tuple[LayerWeights, ...] = tuple(
            take_weights(found.module, found.batch_norm) for found in self._found
        )
        self._reference: Kernels = (None,) * len(self._found)
        self._active = self._reference
        self._active_plan = self.reference_plan
        self._patches = ForwardPatches()
        self._observers: dict[int, ActivationObserver] = {}
        self._capture: dict[int, Tensor] | None = None
        self._attach()

    # --- what it is -------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._model

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the switchable layers in execution order."""
        return tuple(shape.name for shape in self._shapes)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """What each switchable layer computes for one sample, in execution order."""
        return self._shapes

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions on offer, the reference first."""
        return self._precisions

    @property
    def reference_plan(self) -> PrecisionPlan:
        """The plan that runs every layer at the reference precision."""
        return PrecisionPlan.uniform(self.layer_names, REFERENCE)

    @property
    def active_plan(self) -> PrecisionPlan:
        """The plan that the next batch runs under."""
        return self._active_plan

    @property
    def calibration(self) -> Calibration:
        """Calibrated input ranges by layer name; empty before `calibrate` or `load_calibration`."""
        return self._calibration

    def native_kernel(self, layer_index: int, name: str) -> str | None:
        """Name of the native kernel that runs a layer at a precision; None if it is emulated.

        The reference precision always runs natively: it is the model itself.
        """
        if name == REFERENCE:
            return "torch"
        kernel = find_native(self._weights[layer_index], precision(name)) if self._native else None
        return kernel.name if kernel else None

    # --- calibration ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Inputs]) -> Calibration:
        """Run ``batches`` at the reference and fit the activation quantizers to what each layer reads.

        Raises:
            ModelError: If there is no batch, or an activation is NaN or infinite.
        """
        self._observers = {index: ActivationObserver() for index in range(len(self._found))}
        seen = 0
        try:
            for batch in batches:
                self.run(batch, self.reference_plan)
                seen += 1
            if not seen:
                raise ModelError("calibration saw 0 batches, needs at least 1; give it some calibrate samples")
            widths = integer_widths(self._precisions)
            calibration = {
                self._shapes[index].name: observer.calibrate(widths) for index, observer in self._observers.items()
            }
        finally:
            self._observers = {}
        self.load_calibration(calibration)
        return calibration

    def load_calibration(self, calibration: Calibration) -> None:
        """Use a calibration made earlier, as a bundle brings it; packed kernels are dropped.

        Raises:
            ModelError: If it lacks one of the layers.
        """
        missing = [name for name in self.layer_names if name not in calibration]
        if missing:
            raise ModelError(f"calibration lacks layer {missing[0]!r}: calibrate this model again")
        self._calibration = dict(calibration)
        with self._pack_lock:
            self._variants.clear()
            self._assignments.clear()

    # --- switching and running --------------------------------------------------------------------------

    def prepare(self, plan: PrecisionPlan) -> Kernels:
        """Pack what ``plan`` needs and return its kernels; packing happens once per layer and precision.

        Raises:
            PlanError: If the plan is for another model.
            PrecisionError: If it uses a precision that is not on offer.
            ModelError: If the model was not calibrated.
        """
        kernels = self._assignments.get(plan)
        if kernels is None:
            ordered = plan.require_layers(self.layer_names)
            with self._pack_lock:
                kernels = tuple(self._variant(index, name) for index, name in enumerate(ordered.values()))
                self._assignments[plan] = kernels
        return kernels

    def switch(self, plan: PrecisionPlan) -> None:
        """Run every batch that begins from now on under ``plan``."""
        kernels = self.prepare(plan)
        self._active, self._active_plan = kernels, plan

    def run(self, batch: Inputs, plan: PrecisionPlan | None = None) -> Any:
        """Run one batch under ``plan`` (None: the active plan) and return what the model returns.

        The plan holds for this call in this thread only: shadow runs need no switch.
        """
        self._local.kernels = self._active if plan is None else self.prepare(plan)
        try:
            return call_model(self._model, batch)
        finally:
            self._local.kernels = None

    @torch.inference_mode()
    def logits(self, batches: Iterable[Inputs], plan: PrecisionPlan | None = None) -> Tensor:
        """Logits of shape (samples, classes), float32, on the CPU, of all ``batches`` under ``plan``."""
        return torch.cat([logits_of(self.run(batch, plan)).float().cpu() for batch in batches])

    @torch.inference_mode()
    def layer_inputs(self, batch: Inputs) -> tuple[Tensor, ...]:
        """Each switchable layer's input activations when ``batch`` runs at the reference (its last call)."""
        self._capture = {}
        try:
            self.run(batch, self.reference_plan)
            return tuple(self._capture[index] for index in range(len(self._found)))
        finally:
            self._capture = None

    def layer_callable(self, layer_index: int, name: str) -> Callable[[Tensor], Tensor]:
        """One layer at one precision by itself: its folded BatchNorm is part of it at every precision."""
        found = self._found[layer_index]
        if name != REFERENCE:
            plan = self.reference_plan.replace(**{self.layer_names[layer_index]: name})
            return cast(PackedKernel, self.prepare(plan)[layer_index]).run

        def run_reference(x: Tensor) -> Tensor:
            y: Tensor = found.module(x)
            return y if found.batch_norm is None else cast(Tensor, found.batch_norm(y))

        return run_reference

    # --- attaching and detaching ------------------------------------------------------------------------

    def _attach(self) -> None:
        for index, found in enumerate(self._found):
            self._patches.replace(found.module, partial(self._layer_forward, index))
            if found.batch_norm is not None:
                self._patches.replace(found.batch_norm, partial(self._batch_norm_forward, index))

    def detach(self) -> None:
        """Give the model back as it was, bit for bit: forwards and training flags."""
        self._patches.undo()
        self._restore_training()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # --- inside -----------------------------------------------------------------------------------------

    def _restore_training(self) -> None:
        while self._was_training:
            self._was_training.pop().training = True

    def _kernels(self) -> Kernels:
        return getattr(self._local, "kernels", None) or self._active

    def _layer_forward(self, index: int, original: Any) -> Any:
        def forward(x: Tensor) -> Any:
            if self._observers:
                self._observers[index].observe(x)
            if self._capture is not None:
                self._capture[index] = x
            packed = self._kernels()[index]
            return original(x) if packed is None else packed.run(x)

        return forward

    def _batch_norm_forward(self, index: int, original: Any) -> Any:
        def forward(x: Tensor) -> Any:
            return original(x) if self._kernels()[index] is None else x

        return forward

    def _variant(self, index: int, name: str) -> PackedKernel | None:
        if name == REFERENCE:
            return None
        if (index, name) not in self._variants:
            wanted = precision(name)
            if wanted not in self._precisions:
                offered = ", ".join(p.name for p in self._precisions)
                raise PrecisionError(f"precision {name!r} is not on offer for this model; it has {offered}")
            self._variants[index, name] = pack(
                self._weights[index], wanted, self._calibrated(index), native=self._native
            )
        return self._variants[index, name]

    def _calibrated(self, index: int) -> LayerCalibration:
        try:
            return self._calibration[self._shapes[index].name]
        except KeyError:
            raise ModelError("the model is not calibrated: call calibrate() with some batches first") from None
