"""What the policy sees: the observation of one layer in one episode, shared by training and serving.

Features are relative to the layer and the model (shares, ratios, logarithms), so that one policy can read the
profiles of different networks that offer the same precisions. Needs numpy only.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from functools import partial
from typing import SupportsIndex, get_args

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import GuardrailError
from wattbit.plan import PrecisionPlan
from wattbit.profile import LayerKind, LayerProfile, ModelProfile

Observation = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
_CONTEXT = ("tolerance_log10_pp", "energy_price_log10", "device_reference_energy_log10")
_LAYER = (
    *(f"kind_{kind}" for kind in _KINDS),
    "macs_share_log10",
    "weights_share_log10",
    "in_channels_log10",
    "out_channels_log10",
    "kernel_size",
    "stride",
    "depth",
    "energy_share",
)
_PROGRESS = ("energy_committed", "energy_open", "predicted_drop_used")
_PER_PRECISION = ("supported", "energy_ratio", "sensitivity_log10", "predicted_drop_log10")

# Observations are bounded so that an unusual model cannot drive the network far from what it was trained on.
_BOUND = 5.0
# Below this divergence (nats) two outputs are alike for every purpose here.
_SENSITIVITY_FLOOR = 1e-8
# Smallest decimal logarithm of a predicted drop relative to the tolerance.
_LOG_DROP_FLOOR = -5.0
# Where the features are that change during and between episodes.
_TOLERANCE, _PRICE = 0, 1
_COMMITTED = len(_CONTEXT) + len(_LAYER)
_USED = _COMMITTED + 2


@dataclass(frozen=True, slots=True)
class Context:
    """What an episode is asked for.

    Attributes:
        tolerance_pp: The largest drop allowed, percentage points.
        energy_price: Weight of saved energy in the reward; 1 is the normal price.

    Raises:
        GuardrailError: If one of them is not a finite number above 0.
    """

    tolerance_pp: float
    energy_price: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("tolerance", self.tolerance_pp), ("energy price", self.energy_price)):
            if not 0.0 < value < math.inf:
                raise GuardrailError(f"{name} is {value}, must be a finite number above 0; 1.0 is usual")


@dataclass(frozen=True, slots=True)
class FeatureEncoder:
    """Turns a profile and the choices so far into observations.

    What does not change from episode to episode is laid out once, so that an observation costs a copy.

    Attributes:
        profile: The model's profile.
        pp_per_nat: Percentage points of drop that one nat of summed sensitivity is expected to cost.
    """

    profile: ModelProfile
    pp_per_nat: float
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _reference_j: float = field(init=False, repr=False, compare=False)
    _masks: NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    _rows: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _log_drops: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        profile = self.profile
        per_precision = [f"{kind}_{name}" for kind in _PER_PRECISION for name in profile.precisions]
        previous = [f"previous_{name}" for name in ("none", *profile.precisions)]
        masks = np.array([[name in layer.costs for name in profile.precisions] for layer in profile.layers])
        set_field = partial(object.__setattr__, self)
        set_field("_names", (*_CONTEXT, *_LAYER, *_PROGRESS, *per_precision, *previous))
        set_field("_reference_j", profile.reference_energy_j)
        set_field("_masks", masks)
        set_field("_rows", np.array([self._fixed_row(index) for index in range(len(profile.layers))]))
        set_field("_log_drops", np.array([self._log_drop(layer) for layer in profile.layers]))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each feature, in order."""
        return self._names

    @property
    def size(self) -> int:
        """Length of an observation."""
        return len(self._names)

    @property
    def bound(self) -> float:
        """Every feature lies in [-bound, bound]."""
        return _BOUND

    def mask(self, layer_index: int) -> Mask:
        """Which precisions the layer supports, (precisions,) bool."""
        mask: Mask = self._masks[layer_index].copy()  # torch warns of read-only arrays
        return mask

    def encode(
        self,
        layer_index: int,
        context: Context,
        committed_j: float,
        sensitivity_used: float,
        previous: str | None,
    ) -> Observation:
        """The observation before the layer at ``layer_index`` gets its precision, (size,) float32.

        Args:
            layer_index: Which layer is next.
            context: What the episode is asked for.
            committed_j: Energy of the layers assigned so far, joules.
            sensitivity_used: Sum of their sensitivities, nats.
            previous: Precision of the layer before; None for the first.
        """
        names = self.profile.precisions
        row: NDArray[np.float64] = self._rows[layer_index].copy()
        log_tolerance = math.log10(context.tolerance_pp)
        row[_TOLERANCE] = log_tolerance
        row[_PRICE] = math.log10(context.energy_price)
        row[_COMMITTED] = committed_j / self._reference_j
        row[_USED] = 2.0 * math.tanh(0.5 * sensitivity_used * self.pp_per_nat / context.tolerance_pp)
        drops = np.maximum(self._log_drops[layer_index] - log_tolerance, _LOG_DROP_FLOOR)
        end = len(row) - len(names) - 1
        row[end - len(names) : end] = np.where(self._masks[layer_index], drops, 0.0)
        row[end if previous is None else end + 1 + names.index(previous)] = 1.0
        return np.minimum(np.maximum(row, -_BOUND), _BOUND).astype(np.float32)

    def _fixed_row(self, index: int) -> list[float]:
        """An observation of the layer, zero where it depends on the episode."""
        profile = self.profile
        layer, layers = profile.layers[index], profile.layers
        shape = layer.shape
        open_j = sum(later.costs[profile.reference].energy_j for later in layers[index:])
        reference_j = layer.costs[profile.reference].energy_j
        costs = [layer.costs.get(name) for name in profile.precisions]
        return [
            *(0.0, 0.0, math.log10(self._reference_j) / 3.0 + 2.0),
            *(float(shape.kind == kind) for kind in _KINDS),
            math.log10(shape.macs / sum(other.shape.macs for other in layers)),
            math.log10(shape.weight_elements / sum(other.shape.weight_elements for other in layers)),
            math.log10(shape.in_channels) - 1.5,
            math.log10(shape.out_channels) - 1.5,
            shape.kernel_size / 3.0 - 1.0,
            shape.stride - 1.0,
            shape.depth,
            reference_j / self._reference_j,
            *(0.0, open_j / self._reference_j, 0.0),
            *(1.0 if cost else 0.0 for cost in costs),
            *(cost.energy_j / reference_j if cost else 1.0 for cost in costs),
            *(
                math.log10(max(cost.sensitivity, _SENSITIVITY_FLOOR)) / 2.0 + 2.0 if cost else 0.0
                for cost in costs
            ),
            *[0.0] * len(costs),
            *[0.0] * (len(costs) + 1),
        ]

    def _log_drop(self, layer: LayerProfile) -> list[float]:
        """Decimal logarithm of the drop each precision is expected to cost, percentage points."""
        costs = [layer.costs.get(name) for name in self.profile.precisions]
        return [
            math.log10(max(cost.sensitivity * self.pp_per_nat, 1e-300)) if cost else 0.0 for cost in costs
        ]


class PlanBuilder:
    """One pass over the layers in execution order, which gives each of them a precision."""

    def __init__(self, encoder: FeatureEncoder, context: Context) -> None:
        self._encoder = encoder
        self._context = context
        self._chosen: list[str] = []
        self._committed_j = 0.0
        self._sensitivity = 0.0

    @property
    def context(self) -> Context:
        """What the episode is asked for."""
        return self._context

    @property
    def layer_index(self) -> int:
        """The layer that is next; the number of layers when the plan is complete."""
        return len(self._chosen)

    @property
    def done(self) -> bool:
        """True once every layer has its precision."""
        return len(self._chosen) == len(self._encoder.profile.layers)

    @property
    def previous(self) -> str | None:
        """The precision chosen last."""
        return self._chosen[-1] if self._chosen else None

    @property
    def observation(self) -> Observation:
        """What the policy sees now; zeros when the plan is complete."""
        if self.done:
            return np.zeros(self._encoder.size, np.float32)
        return self._encoder.encode(
            self.layer_index, self._context, self._committed_j, self._sensitivity, self.previous
        )

    @property
    def mask(self) -> Mask:
        """The precisions the next layer supports; all of them when the plan is complete."""
        if self.done:
            return np.ones(len(self._encoder.profile.precisions), bool)
        return self._encoder.mask(self.layer_index)

    def assign(self, action: SupportsIndex) -> float:
        """Give the next layer the precision at index ``action``; returns the energy it costs, joules.

        Raises:
            IndexError: If the plan is complete.
            TypeError: If ``action`` is not a whole number.
            ValueError: If the action is out of range, or the layer does not support that precision.
        """
        if self.done:
            raise IndexError("every layer has its precision already; start a new plan")
        profile, index = self._encoder.profile, self.layer_index
        chosen = operator.index(action)
        if not 0 <= chosen < len(profile.precisions):
            raise ValueError(f"action is {chosen}, must be from 0 to {len(profile.precisions) - 1}")
        name = profile.precisions[chosen]
        cost = profile.layers[index].costs.get(name)
        if cost is None:
            raise ValueError(
                f"layer {profile.layers[index].name!r} does not support {name!r}: "
                f"choose among {', '.join(profile.supported(index))} (see action_masks)"
            )
        energy_j = profile.step_energy_j(index, name, self.previous)
        self._chosen.append(name)
        self._committed_j += energy_j
        self._sensitivity += cost.sensitivity
        return energy_j

    @property
    def plan(self) -> PrecisionPlan:
        """The plan so far; layers not reached yet are at the reference."""
        profile = self._encoder.profile
        names = [*self._chosen, *[profile.reference] * (len(profile.layers) - len(self._chosen))]
        return PrecisionPlan(dict(zip(profile.layer_names, names, strict=True)))
