"""What a layer costs: from a device table (``modelled``), or from a meter around its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from wattbit.energy.counter import CounterMeter
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.energy_comparison import Confirmation, EnergyComparison
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.measurement_protocol import DEFAULT_PROTOCOL, MeasurementProtocol
from wattbit.energy.measurer import Job, Measurer
from wattbit.energy.meter import EnergyMeter
from wattbit.errors import MeterError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, num_samples
from wattbit.plan import PrecisionPlan
from wattbit.precision import Precision
from wattbit.profile import LayerShape, ModelProfile, Provenance
from wattbit.profiling.measurement_identity import measurement_identity
from wattbit.profiling.profiler import LayerCost


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

    def residual_cost(self) -> tuple[float | None, float | None]:
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
    layers' figures and cost nothing on top; what chained layers save of them shows in `confirm`. A layer is
    measured on all of its calls. Its figure at a precision is its figure at the reference times a ratio, so
    that drift in between does not matter.

    Args:
        meter: The meter to read.
        model: The calibrated model.
        batch: Real samples to run.
        protocol: How to measure.
        cache: Where measurements are kept; None to make them every time.

    Attributes:
        samples: Inferences in one run of the batch.
        confidence: Level of the intervals, 0 to 1.

    Raises:
        MeterError: If the meter does not count the energy of the device that the model is on.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        model: SwitchableModel,
        batch: Inputs,
        protocol: MeasurementProtocol = DEFAULT_PROTOCOL,
        *,
        cache: MeasurementCache | None = None,
    ) -> None:
        _require_covered(meter, model)
        self._meter = meter
        self._model = model
        self._batch = batch
        self.samples = num_samples(batch)
        self.confidence = protocol.rules.confidence
        self._measurer = Measurer(
            meter,
            protocol,
            cache=cache,
            depends_on=measurement_identity(meter, model, batch) if cache else None,
        )
        self._inputs = model.layer_inputs(batch)
        self._measured: dict[_LayerKey, EnergyComparison] = {}

    @property
    def provenance(self) -> Provenance:
        """The meter's."""
        return self._meter.provenance

    @property
    def device(self) -> str:
        """The meter's device."""
        return self._meter.device

    def layer_cost(self, layer_index: int, precision: Precision) -> LayerCost | None:
        """Measured cost for one inference; None if no native kernel runs the layer at ``precision``.

        The first call measures every layer at every native precision, taking turns.
        """
        if self._model.native_kernel(layer_index, precision.name) is None:
            return None
        base = self._compare(layer_index, self._partner(layer_index))
        energy_j, seconds = base.reference_j / self.samples, base.reference_s / self.samples
        if precision == self._model.precisions[0]:
            return LayerCost(energy_j, base.reference_rel_std, seconds * 1e3)
        found = self._compare(layer_index, precision)
        slower = found.candidate_s / found.reference_s
        return LayerCost(energy_j * found.energy_ratio, found.energy_rel_std, seconds * slower * 1e3)

    def conversion_j(self, source: Precision, target: Precision) -> float:
        """0: native kernels convert inside, and their figures include it."""
        return 0.0

    @torch.inference_mode()
    def residual_cost(self) -> tuple[float | None, float | None]:
        """Energy and time of what is not a switchable layer; None where it does not stand out from noise.

        All layers, one after the other, are measured against the whole model; what their share lacks to 1 is
        taken of the layers' own figures, so that drift between measurements does not matter here either.
        """
        reference = self._model.precisions[0].name
        count = len(self._model.shapes)
        layers = [self._model.layer_callable(index, reference) for index in range(count)]
        calls = [(layer, x) for layer, inputs in zip(layers, self._inputs, strict=True) for x in inputs]
        (found,) = self._measurer.measure(
            [
                Job(
                    "what is not a layer",
                    {"measured": "layers against whole model"},
                    lambda: self._model.run(self._batch, self._model.reference_plan),
                    lambda: [layer(x) for layer, x in calls],
                )
            ]
        )
        bases = [self._compare(index, self._partner(index)) for index in range(count)]
        missing = 1.0 / found.energy_ratio - 1.0
        energy_j = missing * sum(base.reference_j for base in bases) / self.samples
        slower = found.reference_s / found.candidate_s - 1.0
        seconds = slower * sum(base.reference_s for base in bases) / self.samples
        return energy_j if energy_j > 0.0 else None, seconds * 1e3 if seconds > 0.0 else None

    @torch.inference_mode()
    def confirm(self, profile: ModelProfile, plans: Sequence[PrecisionPlan]) -> list[Confirmation]:
        """Measure the whole model under each plan against the reference, beside what ``profile`` says of it.

        What layers save each other, such as conversions between chained ones, is in these figures alone.

        Raises:
            PlanError: If a plan is for another model, or uses what the profile does not have.
            MeterError: If the meter fails, or the device was not left alone.
        """
        ordered = [profile.require_plan(plan) for plan in plans]
        found = self._measurer.measure([self._whole(plan) for plan in ordered])
        return [
            Confirmation(one, profile.plan_energy_j(plan) / profile.reference_energy_j)
            for plan, one in zip(ordered, found, strict=True)
        ]

    def _whole(self, plan: PrecisionPlan) -> Job:
        return Job(
            f"plan {plan.plan_id}",
            {"measured": "whole model", "plan": dict(plan)},
            partial(self._model.run, self._batch, self._model.reference_plan),
            partial(self._model.run, self._batch, plan),
        )

    def _partner(self, layer_index: int) -> Precision:
        """The precision whose measurement yields the reference's figures too: the first other native one."""
        first, *others = self._native(layer_index)
        return others[0] if others else first

    def _native(self, layer_index: int) -> list[Precision]:
        """The precisions that a layer can be measured at, the reference first."""
        first, *others = self._model.precisions
        if not self._model.calibration:
            return [first]
        return [first, *(p for p in others if self._model.native_kernel(layer_index, p.name) is not None)]

    def _compare(self, layer_index: int, precision: Precision) -> EnergyComparison:
        key = self._key(layer_index, precision.name)
        if key not in self._measured:
            self._measure_layers()
        return self._measured[key]

    @torch.inference_mode()
    def _measure_layers(self) -> None:
        jobs: dict[_LayerKey, Job] = {}
        for index in range(len(self._model.shapes)):
            first, *others = self._native(index)
            for precision in others or [first]:
                key = self._key(index, precision.name)
                if key not in jobs and key not in self._measured:
                    jobs[key] = self._job(index, precision, key)
        found = self._measurer.measure(list(jobs.values()))
        self._measured.update(zip(jobs, found, strict=True))

    def _job(self, layer_index: int, precision: Precision, key: _LayerKey) -> Job:
        inputs = self._inputs[layer_index]
        reference = self._model.layer_callable(layer_index, self._model.precisions[0].name)
        candidate = self._model.layer_callable(layer_index, precision.name)
        return Job(
            f"{self._model.layer_names[layer_index]} at {precision.name}",
            {**asdict(key), "kernel": self._model.native_kernel(layer_index, precision.name)},
            lambda: [reference(x) for x in inputs],
            lambda: [candidate(x) for x in inputs],
        )

    def _key(self, layer_index: int, precision: str) -> _LayerKey:
        shape = replace(self._model.shapes[layer_index], name="", depth=0.0)
        return _LayerKey(shape, self._model.folds_batch_norm[layer_index], precision)


def _require_covered(meter: EnergyMeter, model: SwitchableModel) -> None:
    device = next((tensor.device for tensor in model.model.state_dict().values()), torch.device("cpu"))
    name = f"{device.type}:{device.index or 0}" if device.type == "cuda" else device.type
    if isinstance(meter, CounterMeter) and not meter.covers(name):
        raise MeterError(
            f"the model is on {name}, whose energy is not counted by the meter of {meter.device}; choose a "
            "meter for that device (energy=rapl for the CPU, energy=nvml for CUDA), or move the model"
        )
