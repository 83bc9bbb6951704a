"""What a layer costs: from a device table (``modelled``), or from a meter around its kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from wattbit.batches import Inputs, num_samples
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.meter import EnergyMeter, Provenance
from wattbit.energy.protocol import Comparison, compare
from wattbit.layers import SwitchableModel
from wattbit.precision import Precision
from wattbit.profile import LayerShape
from wattbit.profiler import LayerCost


class ModelledCost:
    """Costs from a device table: every precision the table knows competes, for the device it describes.

    What cannot switch (activation functions, pooling, norms) is not in the tables: its energy is unknown, and
    figures cover the switchable layers.
    """

    def __init__(
        self, device_model: DeviceModel, shapes: tuple[LayerShape, ...], batch_size: int = 1
    ) -> None:
        self._device_model = device_model
        self._shapes = shapes
        self._batch_size = batch_size

    @property
    def provenance(self) -> Provenance:
        """Always ``modelled``."""
        return "modelled"

    @property
    def device(self) -> str:
        """Name of the device the table describes."""
        return self._device_model.device

    def layer_cost(self, layer_index: int, precision: Precision) -> LayerCost | None:
        """The table's figures for one inference; None if the device has no such format."""
        if not self._device_model.supports(precision):
            return None
        shape = self._shapes[layer_index]
        seconds = self._device_model.layer_latency_s(shape, precision, self._batch_size)
        energy_j = self._device_model.layer_energy_j(shape, precision, self._batch_size)
        return LayerCost(energy_j, None, seconds * 1e3)

    def conversion_j(self, source: Precision, target: Precision) -> float:
        """The table's energy to convert one activation, joules."""
        if not (self._device_model.supports(source) and self._device_model.supports(target)):
            return 0.0
        return self._device_model.conversion_j_per_element(source, target)

    def other(self) -> tuple[float | None, float | None]:
        """Not known."""
        return None, None


@dataclass(frozen=True, slots=True)
class _LayerKey:
    """Layers of equal shape share one measurement."""

    shape: LayerShape
    folds_batch_norm: bool
    precision: str


class MeteredCost:
    """Costs from a meter around each layer's kernel, on captured activations.

    Only what runs natively has a cost: energy of an emulated layer would be energy of the emulation.
    Conversions happen inside the native kernels, which read and write float32, so they are part of the
    layers' figures and cost nothing on top. A layer is measured on all of its calls. Its figure at a
    precision is its figure at the reference times a ratio, so that drift in between does not matter.

    Args:
        meter: The meter to read.
        model: The calibrated model.
        batch: Real samples to run.
        window_s: Shortest measurement window, seconds.
        trials: ABBA trials a layer.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        model: SwitchableModel,
        batch: Inputs,
        *,
        window_s: float = 0.02,
        trials: int = 5,
    ) -> None:
        self._meter = meter
        self._model = model
        self._batch = batch
        self._samples = num_samples(batch)
        self._window_s = window_s
        self._trials = trials
        self._inputs = model.layer_inputs(batch)
        self._measured: dict[_LayerKey, Comparison] = {}

    @property
    def provenance(self) -> Provenance:
        """The meter's."""
        return self._meter.provenance

    @property
    def device(self) -> str:
        """The meter's device."""
        return self._meter.device

    def layer_cost(self, layer_index: int, precision: Precision) -> LayerCost | None:
        """Measured cost for one inference; None if no native kernel runs the layer at ``precision``."""
        if self._model.native_kernel(layer_index, precision.name) is None:
            return None
        base = self._compare(layer_index, self._model.precisions[0])
        energy_j, seconds = base.reference_j / self._samples, base.reference_s / self._samples
        if precision == self._model.precisions[0]:
            return LayerCost(energy_j, base.energy_rel_std, seconds * 1e3)
        found = self._compare(layer_index, precision)
        slower = found.candidate_s / found.reference_s
        return LayerCost(energy_j * found.energy_ratio, found.energy_rel_std, seconds * slower * 1e3)

    def conversion_j(self, source: Precision, target: Precision) -> float:
        """0: native kernels convert inside, and their figures include it."""
        return 0.0

    @torch.inference_mode()
    def other(self) -> tuple[float | None, float | None]:
        """Energy and time of the whole model less its switchable layers; None where noise is all there is."""
        reference = self._model.reference_plan
        run = lambda: self._model.run(self._batch, reference)  # noqa: E731
        whole = compare(self._meter, run, run, window_s=self._window_s, trials=self._trials)
        layers = [self._compare(index, self._model.precisions[0]) for index in range(len(self._model.shapes))]
        energy_j = (whole.reference_j - sum(layer.reference_j for layer in layers)) / self._samples
        seconds = (whole.reference_s - sum(layer.reference_s for layer in layers)) / self._samples
        return energy_j if energy_j > 0.0 else None, seconds * 1e3 if seconds > 0.0 else None

    @torch.inference_mode()
    def _compare(self, layer_index: int, precision: Precision) -> Comparison:
        shape = replace(self._model.shapes[layer_index], name="", depth=0.0)
        key = _LayerKey(shape, self._model.folds_batch_norm[layer_index], precision.name)
        if key not in self._measured:
            inputs = self._inputs[layer_index]
            reference = self._model.layer_callable(layer_index, self._model.precisions[0].name)
            candidate = self._model.layer_callable(layer_index, precision.name)
            self._measured[key] = compare(
                self._meter,
                lambda: [reference(x) for x in inputs],
                lambda: [candidate(x) for x in inputs],
                window_s=self._window_s,
                trials=self._trials,
            )
        return self._measured[key]
