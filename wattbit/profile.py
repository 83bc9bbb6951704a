"""The profile of a model on a device: what each layer costs and tolerates at each precision.

Values only; `wattbit.profiling.profiler` measures them. Needs neither torch nor numpy, so that a controller
can read a profile where torch is not installed.

Energy model of a plan (additive, with conversions)::

    energy(plan) = other + sum over layers l of [cost(l, p_l) + elements(l) * conversion(p_(l-1), p_l)]

where ``p_l`` is the precision of layer ``l`` and layers are in execution order. ``other`` is what the layers
that cannot switch cost; it is None where it is not known, and then figures cover the switchable layers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from wattbit.coverage import Coverage, LeftOut
from wattbit.errors import PlanError, WattbitError
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision
from wattbit.storage.strict_json import dump_json, parse_json, require_number

PROFILE_SCHEMA = 1

Provenance = Literal["measured", "estimated", "modelled"]
"""``measured``: a hardware counter; ``estimated``: measured time x stated power; ``modelled``: a table."""

LayerKind = Literal["conv2d", "depthwise_conv2d", "linear"]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer computes for one sample, summed over its calls.

    Attributes:
        name: The layer's name in the model, as in ``model.named_modules()``.
        kind: The type of the layer.
        macs: Multiply-accumulates.
        weight_elements: Number of weights (without bias).
        input_elements: Number of input activations read.
        output_elements: Number of output activations written.
        in_channels: Input channels or features.
        out_channels: Output channels or features.
        kernel_size: Side of the (largest) kernel; 1 for linear layers.
        stride: (Largest) stride; 1 for linear layers.
        groups: Number of groups; 1 for linear layers.
        depth: Position in execution order from 0 (first) to 1 (last).
    """

    name: str
    kind: LayerKind
    macs: int
    weight_elements: int
    input_elements: int
    output_elements: int
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    depth: float


@dataclass(frozen=True, slots=True)
class PrecisionCost:
    """What one layer costs and how much it disturbs the output at one precision.

    Attributes:
        energy_j: Energy per inference (one sample), joules.
        energy_rel_std: Relative standard deviation of ``energy_j`` over trials; None if nothing was measured.
        latency_ms: Time per inference, milliseconds.
        memory_bytes: Size of the stored weights, scales included.
        sensitivity: Mean Kullback-Leibler divergence (nats) of the model's output from the reference output
            when only this layer runs at this precision.
        sensitivity_std: Standard error of ``sensitivity`` over samples.
        native: True if a native kernel runs it, False if it is emulated.
    """

    energy_j: float
    energy_rel_std: float | None
    latency_ms: float
    memory_bytes: int
    sensitivity: float
    sensitivity_std: float
    native: bool


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer: its shape, and its cost at every precision it supports (keyed by precision name)."""

    shape: LayerShape
    costs: Mapping[str, PrecisionCost]

    @property
    def name(self) -> str:
        """The layer's name in the model."""
        return self.shape.name


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The profile of a whole model on one device.

    Attributes:
        layers: The switchable layers in execution order.
        precisions: Names of the precisions profiled, the reference first.
        provenance: Where the energy figures come from; one for all of them.
        device: The device the figures hold for.
        conversion_j: Energy per activation to pass from one precision to another, keyed ``"fp32->int8"``;
            absent pairs cost nothing extra because nothing is converted.
        other_energy_j: Energy per inference of what cannot switch; None if not known.
        other_latency_ms: Time per inference of what cannot switch; None if not known.
        coverage: What of the model can switch; None if not known.
    """

    layers: tuple[LayerProfile, ...]
    precisions: tuple[str, ...]
    provenance: Provenance
    device: str
    conversion_j: Mapping[str, float]
    other_energy_j: float | None
    other_latency_ms: float | None
    coverage: Coverage | None = None

    @property
    def reference(self) -> str:
        """The precision of the unmodified model."""
        return self.precisions[0]

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the switchable layers in execution order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def reference_plan(self) -> PrecisionPlan:
        """The plan that runs every layer at the reference precision."""
        return PrecisionPlan.uniform(self.layer_names, self.reference)

    @property
    def reference_energy_j(self) -> float:
        """Energy per inference of the reference plan, joules."""
        return self.plan_energy_j(self.reference_plan)

    def supported(self, layer_index: int) -> tuple[str, ...]:
        """Names of the precisions that the layer at ``layer_index`` supports, in profile order."""
        costs = self.layers[layer_index].costs
        return tuple(name for name in self.precisions if name in costs)

    def require_plan(self, plan: PrecisionPlan) -> PrecisionPlan:
        """Return ``plan`` in execution order.

        Raises:
            PlanError: If its layers are not this model's, or a layer does not support its precision.
        """
        plan = plan.require_layers(self.layer_names)
        for layer in self.layers:
            if plan[layer.name] not in layer.costs:
                raise PlanError(
                    f"layer {layer.name!r} cannot run at {plan[layer.name]!r} in this profile "
                    f"({self.provenance} energy); it supports {', '.join(layer.costs)}"
                )
        return plan

    def step_energy_j(self, layer_index: int, name: str, previous: str | None) -> float:
        """Energy of one layer at ``name`` after a layer at ``previous``, conversion included, joules."""
        layer = self.layers[layer_index]
        return layer.costs[name].energy_j + self.conversion_energy_j(layer_index, name, previous)

    def conversion_energy_j(self, layer_index: int, name: str, previous: str | None) -> float:
        """Energy to convert the layer's input from ``previous`` (None: the model's input), joules."""
        source = self.reference if previous is None else previous
        per_element = self.conversion_j.get(f"{source}->{name}", 0.0)
        return per_element * self.layers[layer_index].shape.input_elements

    def plan_energy_j(self, plan: PrecisionPlan) -> float:
        """Energy per inference of ``plan``, which `require_plan` accepts, by the additive model, joules."""
        total = self.other_energy_j or 0.0
        previous: str | None = None
        for index, layer in enumerate(self.layers):
            total += self.step_energy_j(index, plan[layer.name], previous)
            previous = plan[layer.name]
        return total

    def plan_latency_ms(self, plan: PrecisionPlan) -> float:
        """Time per inference of ``plan`` by the additive model, milliseconds."""
        return (self.other_latency_ms or 0.0) + sum(
            layer.costs[plan[layer.name]].latency_ms for layer in self.layers
        )

    def plan_memory_bytes(self, plan: PrecisionPlan) -> int:
        """Size of the stored weights under ``plan``, bytes: of the whole model where coverage is known."""
        stored = {layer.name: layer.costs[plan[layer.name]].memory_bytes for layer in self.layers}
        if self.coverage is None:
            return sum(stored.values())
        total = sum(stored.values()) + self.coverage.other_weight_bytes
        for group in self.coverage.tied:
            # At the reference, layers run on the one weight that they share.
            same = [n for n in group if n == "" or plan.get(n) == self.reference]
            total -= sum(stored[name] for name in same[1:])
        return total

    def plan_sensitivity(self, plan: PrecisionPlan) -> float:
        """Sum of the layers' sensitivities under ``plan``: the divergence expected if they add up (nats)."""
        return sum(layer.costs[plan[layer.name]].sensitivity for layer in self.layers)

    def saving(self, energy_j: float) -> float:
        """The share of the whole model's energy that a plan of ``energy_j`` saves (1 is all of it).

        Where the energy of what cannot switch is not known, its share is taken to be that of its MACs.
        """
        saving = 1.0 - energy_j / self.reference_energy_j
        if self.other_energy_j is not None or self.coverage is None or self.provenance != "modelled":
            return saving
        return saving * self.coverage.macs

    def to_json(self) -> str:
        """The profile as a JSON document that `from_json` reads."""
        return dump_json({"schema": PROFILE_SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ModelProfile:
        """Read a profile written by `to_json`.

        Raises:
            ValueError: If the text is not such a document.
        """
        data = parse_json(text)
        if not isinstance(data, dict) or data.get("schema") != PROFILE_SCHEMA:
            raise ValueError(f"not a profile of schema {PROFILE_SCHEMA}")
        try:
            profile = cls(
                layers=tuple(_layer_from(layer) for layer in data["layers"]),
                precisions=tuple(precision(name).name for name in data["precisions"]),
                provenance=cast(Provenance, data["provenance"]),
                device=data["device"],
                conversion_j={
                    pair: require_number(joules, pair) for pair, joules in data["conversion_j"].items()
                },
                other_energy_j=_optional(data["other_energy_j"], "other_energy_j"),
                other_latency_ms=_optional(data["other_latency_ms"], "other_latency_ms"),
                coverage=_coverage_from(data.get("coverage")),
            )
        except (AttributeError, KeyError, TypeError, WattbitError) as error:
            raise ValueError(f"profile lacks or garbles {error}") from error
        _require_sound(profile)
        return profile


def _layer_from(layer: Mapping[str, Any]) -> LayerProfile:
    shape = LayerShape(**layer["shape"])
    if not isinstance(shape.name, str) or shape.kind not in get_args(LayerKind):
        raise ValueError(f"layer {shape.name!r:.80} of kind {shape.kind!r:.80} cannot switch")
    for field in fields(LayerShape)[2:]:
        value = require_number(getattr(shape, field.name), field.name)
        if field.name != "depth" and not (isinstance(value, int) and 1 <= value < 2**63):
            raise ValueError(f"{field.name} of layer {shape.name!r} is {value}")
    return LayerProfile(
        shape, {precision(name).name: _cost_from(cost) for name, cost in layer["costs"].items()}
    )


def _cost_from(data: Mapping[str, Any]) -> PrecisionCost:
    cost = PrecisionCost(**data)
    _optional(cost.energy_rel_std, "energy_rel_std")
    for name in ("energy_j", "latency_ms", "memory_bytes", "sensitivity", "sensitivity_std"):
        require_number(getattr(cost, name), name)
    if not isinstance(cost.memory_bytes, int) or cost.memory_bytes >= 2**63:
        raise ValueError(f"memory_bytes {cost.memory_bytes!r:.80} must be a whole number")
    if cost.energy_j <= 0.0 or not isinstance(cost.native, bool):
        raise ValueError(
            f"energy_j {cost.energy_j} must be above 0, native {cost.native!r:.80} true or false"
        )
    return cost


def _coverage_from(data: Mapping[str, Any] | None) -> Coverage | None:
    if data is None:
        return None
    found = Coverage(
        macs=require_number(data["macs"], "macs"),
        weights=require_number(data["weights"], "weights"),
        left_out=tuple(LeftOut(**part) for part in data["left_out"]),
        other_weight_bytes=int(require_number(data["other_weight_bytes"], "other_weight_bytes")),
        tied=tuple(tuple(map(str, group)) for group in data["tied"]),
    )
    for share in (found.macs, found.weights, *(require_number(p.macs, "macs") for p in found.left_out)):
        if share > 1.0:
            raise ValueError(f"coverage holds a share of {share}, at most 1 is possible")
    return found


def _require_sound(profile: ModelProfile) -> None:
    """Refuse a profile on which a plan's energy cannot be worked out."""
    if not profile.layers or not profile.precisions:
        raise ValueError("profile has no layer or no precision")
    if len(set(profile.layer_names)) < len(profile.layers):
        raise ValueError("profile has two layers of one name")
    if profile.provenance not in get_args(Provenance) or not isinstance(profile.device, str):
        raise ValueError(f"provenance {profile.provenance!r:.80} or device {profile.device!r:.80} is unknown")
    if len(set(profile.precisions)) < len(profile.precisions):
        raise ValueError("profile has a precision twice")
    for layer in profile.layers:
        if profile.reference not in layer.costs or not set(layer.costs) <= set(profile.precisions):
            raise ValueError(f"layer {layer.name!r} lacks the reference or has a precision the profile lacks")

    if not profile.reference_energy_j < math.inf:
        raise ValueError("the reference's energy is beyond the range of numbers")


def _optional(value: Any, name: str) -> float | None:
    return None if value is None else require_number(value, name)
