"""Plans as arrays of precision indices, thousands at once.

An index array has shape (plans, layers): entry (i, l) is the position of layer l's precision in
``profile.precisions``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import PlanError
from wattbit.features import Floats, Mask
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class PlanArrays:
    """A profile as tables by layer and precision index.

    Attributes:
        profile: The profile.
        energy_j: Energy of a layer at a precision, (layers, precisions); infinite where not supported.
        conversion_j: Energy to convert a layer's input, (layers, from, to).
        sensitivity: Sensitivity in nats, (layers, precisions); 0 where not supported.
        supported: Which precisions a layer supports, (layers, precisions).
    """

    profile: ModelProfile
    energy_j: Floats
    conversion_j: Floats
    sensitivity: Floats
    supported: Mask

    @classmethod
    def of(cls, profile: ModelProfile) -> PlanArrays:
        """The tables of ``profile``."""
        layers, names = profile.layers, profile.precisions
        per_element = np.array([[profile.conversion_j.get(f"{q}->{p}", 0.0) for p in names] for q in names])
        elements = np.array([layer.shape.input_elements for layer in layers], np.float64)
        costs = [[layer.costs.get(name) for name in names] for layer in layers]
        return cls(
            profile=profile,
            energy_j=np.array([[np.inf if c is None else c.energy_j for c in row] for row in costs]),
            conversion_j=elements[:, None, None] * per_element,
            sensitivity=np.array([[0.0 if c is None else c.sensitivity for c in row] for row in costs]),
            supported=np.array([[c is not None for c in row] for row in costs]),
        )

    def indices(self, plans: Sequence[PrecisionPlan]) -> Indices:
        """The index array of ``plans``, (plans, layers).

        Raises:
            PlanError: If a plan is for another model.
        """
        position = {name: index for index, name in enumerate(self.profile.precisions)}
        names = self.profile.layer_names
        try:
            rows = [[position[plan[layer]] for layer in names] for plan in plans]
        except KeyError as error:
            raise PlanError(
                f"a plan lacks layer or has unprofiled precision {error}; give plans of the profiled model"
            ) from None
        return np.array(rows, np.intp).reshape(len(rows), len(names))

    def plans(self, indices: Indices) -> list[PrecisionPlan]:
        """The plans of an index array, in order."""
        layers, names = self.profile.layer_names, self.profile.precisions
        return [
            PrecisionPlan({layer: names[index] for layer, index in zip(layers, row, strict=True)})
            for row in indices.tolist()
        ]

    def energies_j(self, indices: Indices) -> Floats:
        """Energy per inference by the profile's additive model, conversions included, joules, (plans,)."""
        layers = np.arange(indices.shape[1])
        # The model's input has the reference precision, which has index 0.
        previous = np.concatenate([np.zeros((len(indices), 1), np.intp), indices[:, :-1]], axis=1)
        switchable_j = self.energy_j[layers, indices] + self.conversion_j[layers, previous, indices]
        total_j: Floats = switchable_j.sum(axis=1) + (self.profile.other_energy_j or 0.0)
        return total_j

    def sensitivities(self, indices: Indices) -> Floats:
        """Sensitivity of each layer of each plan, nats, (plans, layers)."""
        return self.sensitivity[np.arange(indices.shape[1]), indices]
