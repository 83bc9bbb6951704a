"""The additive optimum: the cheapest plan whose summed sensitivities stay below a budget (a knapsack)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class AdditiveModel:
    """The profile as an integer program, solved by HiGHS.

    Binary x[l, p] picks precision p for layer l. Conversions between neighbours make it a shortest path with
    a budget: flow y[l, q, p] >= 0 goes from (l - 1, q) to (l, p), with sum_q y[l, q, p] = x[l, p] and
    sum_p y[l, q, p] = x[l - 1, q]; y is integral wherever x is.
    """

    def __init__(self, profile: ModelProfile) -> None:
        self._profile = profile
        self._nodes = [
            (layer, name) for layer in range(len(profile.layers)) for name in profile.supported(layer)
        ]
        index = {node: i for i, node in enumerate(self._nodes)}
        self._arcs = [
            (index[layer - 1, q], index[layer, p], layer, q, p)
            for layer in range(1, len(profile.layers))
            for q in profile.supported(layer - 1)
            for p in profile.supported(layer)
        ] if profile.conversion_j else []
        self._cost = self._costs()
        self._sensitivity = np.array(
            [profile.layers[layer].costs[name].sensitivity for layer, name in self._nodes]
            + [0.0] * len(self._arcs)
        )
        self._structure = self._structure_constraint()

    def solve(self, sensitivity_budget: float) -> PrecisionPlan:
        """The cheapest plan whose summed sensitivity (nats) is at most ``sensitivity_budget``.

        Raises:
            ValueError: If the budget is negative: not even the reference fits.
        """
        if sensitivity_budget < 0:
            raise ValueError(f"sensitivity budget is {sensitivity_budget}, must be at least 0")
        scale = max(self._profile.reference_energy_j, 1e-30)
        # Scaled to about 1, where the solver's absolute tolerances make sense.
        nats = max(sensitivity_budget, 1e-12)
        limit = LinearConstraint(self._sensitivity[np.newaxis] / nats, -np.inf, 1.0)
        integrality = np.r_[np.ones(len(self._nodes)), np.zeros(len(self._arcs))]
        solution = milp(
            self._cost / scale, integrality=integrality, bounds=Bounds(0, 1), constraints=[self._structure, limit],
            options={"mip_rel_gap": 1e-6, "time_limit": 10.0},
        )  # fmt: skip
        if solution.x is None:
            return self._profile.reference_plan
        return self._plan(solution.x)

    def budgets(self, count: int) -> NDArray[np.float64]:
        """Log-spaced sensitivity budgets from the least to the most sensitive plan, (count,)."""
        largest = sum(max(c.sensitivity for c in layer.costs.values()) for layer in self._profile.layers)
        positive = [c.sensitivity for layer in self._profile.layers for c in layer.costs.values() if c.sensitivity > 0]
        smallest = min(positive, default=1e-9)
        return np.geomspace(max(smallest, 1e-10), max(largest, 1e-9), count)

    def _costs(self) -> NDArray[np.float64]:
        profile = self._profile
        first = [
            profile.step_energy_j(layer, name, None) if layer == 0 else profile.layers[layer].costs[name].energy_j
            for layer, name in self._nodes
        ]
        return np.array(first + [profile.conversion_energy_j(layer, p, q) for _, _, layer, q, p in self._arcs])

    def _structure_constraint(self) -> LinearConstraint:
        entries: list[tuple[int, int, float]] = []  # (row, column, value)
        right: list[float] = []

        def add_row(terms: list[tuple[int, float]], value: float) -> None:
            entries.extend((len(right), column, coefficient) for column, coefficient in terms)
            right.append(value)

        for layer in range(len(self._profile.layers)):
            add_row([(i, 1.0) for i, (node_layer, _) in enumerate(self._nodes) if node_layer == layer], 1.0)
        into: dict[int, list[int]] = {}
        out: dict[int, list[int]] = {}
        for arc, (source, target, *_) in enumerate(self._arcs, len(self._nodes)):
            out.setdefault(source, []).append(arc)
            into.setdefault(target, []).append(arc)
        for side in (into, out):
            for node, arcs in side.items():
                add_row([*((arc, 1.0) for arc in arcs), (node, -1.0)], 0.0)
        rows, columns, values = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(right), len(self._nodes) + len(self._arcs)))
        return LinearConstraint(matrix.tocsr(), right, right)

    def _plan(self, x: NDArray[np.float64]) -> PrecisionPlan:
        chosen: dict[int, tuple[float, str]] = {}
        for (layer, name), value in zip(self._nodes, x, strict=False):
            if layer not in chosen or value > chosen[layer][0]:
                chosen[layer] = (value, name)
        names = self._profile.layer_names
        return PrecisionPlan({names[layer]: name for layer, (_, name) in sorted(chosen.items())})
