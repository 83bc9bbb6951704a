"""Profiles of layer groups: layers that change precision together count as one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan
from wattbit.profile import LayerProfile, LayerShape, ModelProfile, PrecisionCost

Groups = Mapping[str, Sequence[str]]
"""The layers of each group by its name, all in execution order."""


def require_groups(groups: Groups, layer_names: Sequence[str]) -> None:
    """Check that ``groups`` cut the layers into runs without changing their order.

    Raises:
        ConfigError: If a layer is missing, unknown, given twice or out of order.
    """
    listed = [layer for layers in groups.values() for layer in layers]
    for given, layer in zip(listed, layer_names, strict=False):
        if given != layer:
            raise ConfigError(f"groups list layer {given!r} where {layer!r} runs; list layers as they run")
    if len(listed) != len(layer_names) or not all(groups.values()):
        raise ConfigError(
            f"groups list {len(listed)} layers, the model has {len(layer_names)}; list each once, and at "
            "least one a group"
        )


def layer_plan(groups: Groups, plan: Mapping[str, str]) -> PrecisionPlan:
    """The plan of single layers that a plan of groups stands for."""
    return PrecisionPlan({layer: plan[group] for group, layers in groups.items() for layer in layers})


def group_profile(
    profile: ModelProfile, groups: Groups, sensitivities: Mapping[tuple[str, str], tuple[float, float]]
) -> ModelProfile:
    """The profile in which each group is one layer.

    Energy, time, memory and size are sums. A group reads what its first layer reads, so that conversions
    between groups cost what they cost between layers; within a group nothing is converted.

    Args:
        profile: Profile of the single layers.
        groups: The groups.
        sensitivities: Mean and standard error (nats) when one group runs at one precision, by group and
            precision; the reference disturbs nothing.

    Raises:
        ConfigError: If the groups do not fit the layers.
    """
    require_groups(groups, profile.layer_names)
    layers = {layer.name: layer for layer in profile.layers}
    grouped = []
    for index, (name, members) in enumerate(groups.items()):
        parts = [layers[member] for member in members]
        depth = index / max(1, len(groups) - 1)
        costs = {
            precision: _sum([part.costs[precision] for part in parts], *_of(sensitivities, name, precision))
            for precision in profile.precisions
            if all(precision in part.costs for part in parts)
        }
        grouped.append(LayerProfile(_shape(name, depth, [part.shape for part in parts]), costs))
    return replace(profile, layers=tuple(grouped), coverage=None)


def _of(
    sensitivities: Mapping[tuple[str, str], tuple[float, float]], group: str, precision: str
) -> tuple[float, float]:
    return sensitivities.get((group, precision), (0.0, 0.0))


def _shape(name: str, depth: float, shapes: Sequence[LayerShape]) -> LayerShape:
    largest = max(shapes, key=lambda shape: shape.macs)
    return replace(
        largest,
        name=name,
        macs=sum(shape.macs for shape in shapes),
        weight_elements=sum(shape.weight_elements for shape in shapes),
        input_elements=shapes[0].input_elements,
        output_elements=shapes[-1].output_elements,
        in_channels=shapes[0].in_channels,
        out_channels=shapes[-1].out_channels,
        depth=depth,
    )


def _sum(costs: Sequence[PrecisionCost], sensitivity: float, sensitivity_std: float) -> PrecisionCost:
    measured = [cost.energy_rel_std for cost in costs if cost.energy_rel_std is not None]
    energy_j = sum(cost.energy_j for cost in costs)
    return PrecisionCost(
        energy_j=energy_j,
        # The errors of layers measured apart are taken as one, which is the worst case.
        energy_rel_std=max(measured) if measured else None,
        latency_ms=sum(cost.latency_ms for cost in costs),
        memory_bytes=sum(cost.memory_bytes for cost in costs),
        sensitivity=sensitivity,
        sensitivity_std=sensitivity_std,
        native=all(cost.native for cost in costs),
    )
