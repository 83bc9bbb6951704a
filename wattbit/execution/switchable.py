"""Switchable layers: a model whose layers change precision between batches, and the way back.

A switchable layer keeps its module, its parameters and its name; only its ``forward`` is replaced while the
model is attached. Which kernels are in force is one tuple, so a switch replaces one reference, whatever the
number of layers, and a batch under way keeps its tuple: switching is atomic between
batches, also when several threads run batches.

BatchNorm layers that directly follow a convolution are folded into its packed weights. At the reference
precision the original convolution and the original BatchNorm run, bit for bit. What lies between layers that
run as one is sealed: if anybody else reads it, the batch runs again with every layer by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from wattbit.calibration import ActivationObserver, Calibration, integer_widths
from wattbit.eager import eager_model
from wattbit.execution.discovery import find_layers, foldable, left_alone, require_finite_weights
from wattbit.execution.forwards import merged, switched, whole
from wattbit.execution.in_flight import InFlightBatch, InFlightBatches, Watch
from wattbit.execution.int8_chaining import find_chains
from wattbit.execution.kernels import PackedKernel
from wattbit.execution.layer_uses import watch_uses
from wattbit.execution.packing import REFERENCE, Kernels
from wattbit.execution.patching import ForwardPatches, original_forward, require_unpatched
from wattbit.execution.rewriting import RewrittenLayers
from wattbit.execution.weights_watch import WeightsWatch
from wattbit.model_inputs import Inputs, call_model, concatenated
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision, parse_precisions
from wattbit.profile import LayerShape

__all__ = ["REFERENCE", "SwitchableModel"]


class SwitchableModel:
    """A model whose layers can run at any of ``precisions``, switched between batches.

    While attached, ``model(x)`` itself runs under the active plan, and a deep copy of the model is an
    ordinary model at the reference.

    Args:
        model: The model; its parameters are never changed. Put in eval mode while attached.
        example: A small batch of real inputs; it shows which layers run, in which order, on which shapes.
        precisions: Names of the precisions to offer besides the reference.
        native: Use native kernels where the device has them; False emulates everything.

    Raises:
        ModelError: If a weight is NaN or infinite, no layer can switch, or the model is attached already.
        PrecisionError: If a precision is unknown.
    """

    def __init__(
        self, model: nn.Module, example: Inputs, precisions: Iterable[str], *, native: bool = True
    ) -> None:
        if isinstance(precisions, str):
            precisions = (precisions,)
        self._precisions = parse_precisions(dict.fromkeys([REFERENCE, *precisions]))
        model = eager_model(model)
        require_unpatched(model)
        require_finite_weights(model)
        self._model = model
        self._was_training = [module for module in model.modules() if module.training]
        self._patches = ForwardPatches()
        self._in_flight = InFlightBatches()
        model.eval()
        try:
            weights = WeightsWatch(model)
            found, uses = find_layers(model, example), watch_uses(model, example)
            self._found = foldable(model, example, found, uses)
            self._shapes = tuple(found.shape for found in self._found)
            chains = find_chains(self._found, uses) if native else ()
            # What the forward pass itself writes is no change of weights.
            self._weights = WeightsWatch(model, weights.written())
            self._layers = RewrittenLayers(
                self._found, chains, self._precisions, native=native, weights=self._weights
            )
            self._reference = self._active = PrecisionPlan.uniform(self.layer_names, REFERENCE)
            self._attach()
        except BaseException:
            self._give_back()
            raise

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
    def left_alone(self) -> Mapping[str, str]:
        """Why linear layers and convolutions of the model do not switch, by name."""
        return left_alone(self._model, self._found)

    @property
    def folds_batch_norm(self) -> tuple[bool, ...]:
        """Whether a BatchNorm is part of each switchable layer, in execution order."""
        return tuple(found.batch_norm is not None for found in self._found)

    @property
    def reference_plan(self) -> PrecisionPlan:
        """The plan that runs every layer at the reference precision."""
        return self._reference

    @property
    def active_plan(self) -> PrecisionPlan:
        """The plan that the next batch runs under."""
        return self._active

    @property
    def calibration(self) -> Calibration:
        """Calibrated input ranges by layer name; empty before `calibrate` or `load_calibration`."""
        return self._layers.packed.calibration

    def native_kernel(self, layer_index: int, name: str) -> str | None:
        """Name of the native kernel that runs a layer at a precision; None if it is emulated.

        The reference precision always runs natively: it is the model itself.

        Raises:
            PrecisionError: If there is no such precision.
        """
        return self._layers.packed.native_kernel(layer_index, name)

    # --- calibration ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Inputs]) -> Calibration:
        """Run ``batches`` at the reference and fit activation quantizers to what each layer reads.

        Raises:
            ModelError: If a layer ran on no sample, or read an activation that is NaN or infinite.
        """
        observers = [ActivationObserver(shape.name) for shape in self._shapes]
        watched = InFlightBatch(self.prepare(self._reference), lambda index, x: observers[index].observe(x))
        for batch in batches:
            self._run(batch, watched)
        widths = integer_widths(self._precisions)
        calibration = {observer.layer: observer.calibrate(widths) for observer in observers}
        self.load_calibration(calibration)
        return calibration

    def load_calibration(self, calibration: Calibration) -> None:
        """Use a calibration made earlier, as a bundle brings it; what is packed is packed again.

        Raises:
            ModelError: If it lacks one of the layers, or ranges that a precision on offer needs.
        """
        self._layers.load(calibration)
        self.switch(self.active_plan)

    # --- switching and running --------------------------------------------------------------------------

    def prepare(self, plan: PrecisionPlan) -> Kernels:
        """Pack what ``plan`` needs and return its kernels; packing happens once per layer and precision.

        Raises:
            PlanError: If the plan is for another model.
            PrecisionError: If it uses a precision that is not on offer.
            ModelError: If the model was not calibrated.
        """
        return self._layers.kernels(plan)

    def switch(self, plan: PrecisionPlan) -> None:
        """Run every batch that begins from now on under ``plan``; raises as `prepare` does."""
        self.prepare(plan)
        self._active = plan

    def run(self, batch: Inputs, plan: PrecisionPlan | None = None) -> Any:
        """Run one batch under ``plan`` (None: the active plan) and return what the model returns.

        The plan holds for this call in this thread only: shadow runs need no switch.

        Raises:
            ModelError: If the model is detached, or ``plan`` changes a layer and weights have changed since
                the model was attached; further as `prepare`.
        """
        call = partial(call_model, self._model, batch)
        return self._execute(call, self._active if plan is None else plan)

    def run_layers(self, batch: Inputs, layers: Sequence[Callable[[Tensor], Tensor]]) -> Any:
        """Run one batch in which ``layers`` stand in for the switchable ones, folded BatchNorms included.

        Raises:
            ModelError: If the model is detached.
        """
        norms = [() if found.batch_norm is None else (found.batch_norm,) for found in self._found]
        kernels = (PackedKernel(layer, None, norm) for layer, norm in zip(layers, norms, strict=True))
        return self._run(batch, InFlightBatch(tuple(kernels), passes_gradients=True))

    def holding(self, kernels: Kernels) -> AbstractContextManager[None]:
        """A context in which parts of the model that this thread calls run ``kernels``, which `prepare` gave.

        Raises:
            ModelError: If the model is detached, or weights have changed since it was attached.
        """
        return self._in_flight.holding(self._held(kernels))

    @torch.inference_mode()
    def logits(self, batches: Iterable[Inputs], plan: PrecisionPlan | None = None) -> Tensor:
        """Logits of shape (samples, classes), float32, on the CPU, of all ``batches`` under ``plan``.

        Raises:
            DataError: If there is no batch; further as `run`.
        """
        return concatenated(self.run(batch, plan) for batch in batches)

    @torch.inference_mode()
    def layer_inputs(self, batch: Inputs) -> tuple[tuple[Tensor, ...], ...]:
        """What each switchable layer reads, call by call, when ``batch`` runs at the reference."""
        captured: list[list[Tensor]] = [[] for _ in self._shapes]
        # Copied, because layers that work in place may write into them later.
        watch: Watch = lambda index, x: captured[index].append(x.clone())  # noqa: E731
        self._run(batch, InFlightBatch(self.prepare(self._reference), watch))
        return tuple(map(tuple, captured))

    def layer_callable(self, layer_index: int, name: str) -> Callable[[Tensor], Tensor]:
        """One layer at one precision by itself: its folded BatchNorm is part of it at every precision.

        Raises:
            PrecisionError: If the precision is not on offer.
            ModelError: If the model was not calibrated.
        """
        if name != REFERENCE:
            return self._layers.packed.kernel(layer_index, name).run
        found = self._found[layer_index]
        layer = original_forward(found.module)
        norm = None if found.batch_norm is None else original_forward(found.batch_norm)
        return layer if norm is None else lambda x: norm(layer(x))

    # --- attaching and detaching ------------------------------------------------------------------------

    def detach(self) -> None:
        """Give the model back as it was, bit for bit: forwards and training flags.

        Waits for batches under way in other threads; none can begin after it.

        Raises:
            ModelError: If it is called from inside a batch of this model.
        """
        with self._in_flight.stopped():
            self._give_back()
        self._layers.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    # --- inside -----------------------------------------------------------------------------------------

    def _execute(self, call: Callable[[], Any], plan: PrecisionPlan, *, or_after_stop: bool = False) -> Any:
        """``call`` the model under ``plan``; if what is sealed is read, again with every layer by itself."""
        held = self._held(self.prepare(plan))
        try:
            with self._in_flight.holding(held, or_after_stop=or_after_stop):
                output = call()
            if not held.leaks:
                return output
        except Exception:
            if not held.seals:
                raise
        with self._in_flight.holding(
            self._held(self._layers.kernels(plan, apart=True)), or_after_stop=or_after_stop
        ):
            output = call()
        self._layers.part()
        return output

    def _held(self, kernels: Kernels) -> InFlightBatch:
        if any(kernels):
            self._weights.require_unchanged()
        return InFlightBatch(kernels)

    def _run(self, batch: Inputs, held: InFlightBatch) -> Any:
        with self._in_flight.holding(held):
            return call_model(self._model, batch)

    def _attach(self) -> None:
        current = self._in_flight.current

        def held() -> InFlightBatch:
            # A part of the model that is called by itself gives its caller what the model computes there.
            return current() or self._held(self._layers.kernels(self._active, apart=True))

        for index, found in enumerate(self._found):
            self._patches.replace(found.module, partial(switched, held, index, found.module))
        for module in self._layers.between:
            self._patches.replace(module, partial(merged, module))
        direct = lambda call: self._execute(call, self._active, or_after_stop=True)  # noqa: E731
        self._patches.replace(self._model, partial(whole, current, direct))

    def _give_back(self) -> None:
        self._patches.undo()
        while self._was_training:
            self._was_training.pop().training = True
