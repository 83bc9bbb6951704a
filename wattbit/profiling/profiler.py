"""Measuring a profile: what each layer costs and how much it disturbs the output at each precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wattbit.energy.device_model import stored_weight_bytes
from wattbit.errors import PrecisionError, require_at_least
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs
from wattbit.precision import Precision
from wattbit.profile import LayerProfile, ModelProfile, PrecisionCost, Provenance
from wattbit.profiling.gradient_sensitivity import gradient_sensitivities
from wattbit.profiling.sensitivity import (
    LayerChoice,
    Progress,
    Sensitivity,
    SensitivityMethod,
    direct_sensitivities,
    divergence,
    require_method,
)

__all__ = ["CostModel", "LayerCost", "Progress", "divergence", "measure_profile"]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Energy and time of one layer at one precision, per inference."""

    energy_j: float
    energy_rel_std: float | None
    latency_ms: float


class CostModel(Protocol):
    """Says what a layer costs; the energy side of a profile, all of one provenance."""

    @property
    def provenance(self) -> Provenance:
        """Where the figures come from."""

    @property
    def device(self) -> str:
        """The device the figures hold for."""

    def layer_cost(self, layer_index: int, precision: Precision) -> LayerCost | None:
        """The cost of a layer at a precision; None if the device cannot run it."""

    def conversion_j(self, source: Precision, target: Precision) -> float:
        """Energy to convert one activation from one precision to another, joules; 0 if none is converted."""

    def residual_cost(self) -> tuple[float | None, float | None]:
        """(energy_j, latency_ms) per inference of what cannot switch; None where it is not known."""


def measure_profile(
    model: SwitchableModel,
    inputs: Inputs,
    cost: CostModel,
    *,
    batch_size: int = 256,
    sensitivity: SensitivityMethod = "direct",
    workers: int = 1,
    progress: Progress | None = None,
) -> ModelProfile:
    """Measure every layer of a calibrated ``model`` at every precision it offers.

    Args:
        model: The switchable model, calibrated.
        inputs: Samples to measure sensitivities on; use the ``calibrate`` split.
        cost: Where energy and time come from.
        batch_size: Samples per forward pass.
        sensitivity: How sensitivities are found: ``direct`` runs the model for each layer and precision,
            ``gradient`` follows its derivatives (`wattbit.profiling.gradient_sensitivity`): a few passes in
            all, for models of many layers.
        workers: Threads that find sensitivities side by side; the profile does not depend on it.
        progress: Called after each step of finding sensitivities.

    Raises:
        ModelError: If the reference output is not finite, or derivatives are asked for and there are none.
        ConfigError: If ``sensitivity`` is neither, or there is less than 1 worker.
        PrecisionError: If a layer has no cost at the reference, which all others are compared with.
    """
    costs = _layer_costs(model, cost)
    found = dict(
        zip(
            costs,
            _sensitivities(model, inputs, list(costs), sensitivity, batch_size, workers, progress),
            strict=True,
        )
    )
    layers = [
        LayerProfile(
            shape,
            {
                candidate.name: _precision_cost(model, index, candidate, costs[index, candidate], moved)
                for candidate in model.precisions
                if (moved := found.get((index, candidate))) is not None
            },
        )
        for index, shape in enumerate(model.shapes)
    ]
    other_energy_j, other_latency_ms = cost.residual_cost()
    return ModelProfile(
        layers=tuple(layers),
        precisions=tuple(p.name for p in model.precisions if any(p.name in layer.costs for layer in layers)),
        provenance=cost.provenance,
        device=cost.device,
        conversion_j=_conversions(model.precisions, cost),
        other_energy_j=other_energy_j,
        other_latency_ms=other_latency_ms,
    )


def _layer_costs(model: SwitchableModel, cost: CostModel) -> dict[LayerChoice, LayerCost]:
    """What each layer costs at each precision at which the device can run it."""
    costs: dict[LayerChoice, LayerCost] = {}
    for index, shape in enumerate(model.shapes):
        for candidate in model.precisions:
            layer_cost = cost.layer_cost(index, candidate)
            if layer_cost is not None:
                costs[index, candidate] = layer_cost
            elif candidate == model.precisions[0]:
                raise PrecisionError(
                    f"device {cost.device!r} gives layer {shape.name!r} no cost at the reference "
                    f"{candidate.name!r}; take a device that supports {candidate.name!r}"
                )
    return costs


def _sensitivities(
    model: SwitchableModel,
    inputs: Inputs,
    candidates: list[LayerChoice],
    method: SensitivityMethod,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> list[Sensitivity | None]:
    require_method(method)
    require_at_least(1, workers=workers)
    if method == "gradient":
        return gradient_sensitivities(
            model, inputs, candidates, batch_size, workers=workers, progress=progress
        )
    return direct_sensitivities(model, inputs, candidates, batch_size, workers, progress)


def _precision_cost(
    model: SwitchableModel,
    index: int,
    precision: Precision,
    cost: LayerCost,
    sensitivity: Sensitivity,
) -> PrecisionCost:
    return PrecisionCost(
        energy_j=cost.energy_j,
        energy_rel_std=cost.energy_rel_std,
        latency_ms=cost.latency_ms,
        memory_bytes=math.ceil(stored_weight_bytes(model.shapes[index], precision)),
        sensitivity=sensitivity.mean,
        sensitivity_std=sensitivity.std_error,
        native=model.native_kernel(index, precision.name) is not None,
    )


def _conversions(precisions: tuple[Precision, ...], cost: CostModel) -> Mapping[str, float]:
    pairs = {f"{a.name}->{b.name}": cost.conversion_j(a, b) for a in precisions for b in precisions if a != b}
    return {pair: joules for pair, joules in pairs.items() if joules > 0.0}
