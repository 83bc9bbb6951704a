"""Measuring a profile: what each layer costs and how much it disturbs the output at each precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.batches import Inputs, batches
from wattbit.energy.device_model import stored_weight_bytes
from wattbit.energy.meter import Provenance
from wattbit.errors import ModelError, PrecisionError
from wattbit.layers import SwitchableModel
from wattbit.precision import Precision
from wattbit.profile import LayerProfile, ModelProfile, PrecisionCost

Progress = Callable[[int, int], None]
"""Called with (done, total) after each step of a long measurement."""


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

    def other(self) -> tuple[float | None, float | None]:
        """(energy_j, latency_ms) per inference of what cannot switch; None where it is not known."""


def measure_profile(
    model: SwitchableModel,
    inputs: Inputs,
    cost: CostModel,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> ModelProfile:
    """Measure every layer of a calibrated ``model`` at every precision it offers.

    Args:
        model: The switchable model, calibrated.
        inputs: Samples to measure sensitivities on; use the ``calibrate`` split.
        cost: Where energy and time come from.
        batch_size: Samples per forward pass.
        progress: Called after each layer and precision.

    Raises:
        ModelError: If the reference output is not finite.
        PrecisionError: If a layer has no cost at the reference, which all others are compared with.
    """
    reference = _reference_log_probabilities(model, inputs, batch_size)
    total = len(model.shapes) * len(model.precisions)
    done = 0
    layers: list[LayerProfile] = []
    for index, shape in enumerate(model.shapes):
        costs: dict[str, PrecisionCost] = {}
        for candidate in model.precisions:
            layer_cost = cost.layer_cost(index, candidate)
            if layer_cost is not None:
                sensitivity = _sensitivity(model, index, candidate, inputs, reference, batch_size)
                if sensitivity is not None:
                    costs[candidate.name] = _precision_cost(model, index, candidate, layer_cost, sensitivity)
            elif candidate == model.precisions[0]:
                raise PrecisionError(
                    f"device {cost.device!r} gives layer {shape.name!r} no cost at the reference "
                    f"{candidate.name!r}; take a device that supports {candidate.name!r}"
                )
            done += 1
            if progress:
                progress(done, total)
        layers.append(LayerProfile(shape, costs))
    other_energy_j, other_latency_ms = cost.other()
    return ModelProfile(
        layers=tuple(layers),
        precisions=tuple(p.name for p in model.precisions if any(p.name in layer.costs for layer in layers)),
        provenance=cost.provenance,
        device=cost.device,
        conversion_j=_conversions(model.precisions, cost),
        other_energy_j=other_energy_j,
        other_latency_ms=other_latency_ms,
    )


def divergence(log_reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence (nats) of the plan's output from the reference's, per sample.

    Args:
        log_reference: Log-probabilities of the reference, (samples, classes).
        logits: Logits of the plan, (samples, classes).

    Returns:
        (samples,) non-negative values: sum over classes of p_ref * (log p_ref - log p_plan).
    """
    terms = F.kl_div(F.log_softmax(logits, 1), log_reference, reduction="none", log_target=True)
    return terms.sum(1).clamp_min(0.0)


def _reference_log_probabilities(model: SwitchableModel, inputs: Inputs, batch_size: int) -> Tensor:
    logits = model.logits(batches(inputs, batch_size), model.reference_plan)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the reference output holds NaN or infinite values, allowed are 0; check the model and its inputs"
        )
    return F.log_softmax(logits, 1)


def _sensitivity(
    model: SwitchableModel,
    index: int,
    precision: Precision,
    inputs: Inputs,
    reference: Tensor,
    batch_size: int,
) -> tuple[float, float] | None:
    """(mean, standard error) of the divergence, or None if the output is not finite at this precision."""
    if precision == model.precisions[0]:
        return 0.0, 0.0
    plan = model.reference_plan.replace(**{model.layer_names[index]: precision.name})
    values = divergence(reference, model.logits(batches(inputs, batch_size), plan)).double()
    if not bool(torch.isfinite(values).all()):
        return None
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(values.mean()), error


def _precision_cost(
    model: SwitchableModel,
    index: int,
    precision: Precision,
    cost: LayerCost,
    sensitivity: tuple[float, float],
) -> PrecisionCost:
    return PrecisionCost(
        energy_j=cost.energy_j,
        energy_rel_std=cost.energy_rel_std,
        latency_ms=cost.latency_ms,
        memory_bytes=math.ceil(stored_weight_bytes(model.shapes[index], precision)),
        sensitivity=sensitivity[0],
        sensitivity_std=sensitivity[1],
        native=model.native_kernel(index, precision.name) is not None,
    )


def _conversions(precisions: tuple[Precision, ...], cost: CostModel) -> Mapping[str, float]:
    pairs = {f"{a.name}->{b.name}": cost.conversion_j(a, b) for a in precisions for b in precisions if a != b}
    return {pair: joules for pair, joules in pairs.items() if joules > 0.0}
