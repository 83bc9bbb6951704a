"""The additive optimum: the cheapest plan whose summed sensitivities stay below a budget (a knapsack).

Conversions between neighbours make it a shortest path with a budget. Its Lagrangian relaxation, a shortest
path at a price per nat, takes microseconds a layer. What it proves to be in no optimal plan is left out of
the integer program, so that HiGHS solves 200 layers in a fraction of a second. The relaxation is that of
Handler and Zang (1980), "A dual algorithm for the constrained shortest path problem", Networks 10:293-309.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from wattbit.features import Floats, Mask
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

# How far from the optimum a plan may be, as a share of the reference energy.
_GAP = 1e-6
# HiGHS keeps a constraint to this accuracy, relative to the budget.
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class _Route:
    """One precision a layer, by index, the model's input before them; (layers + 1,)."""

    path: NDArray[np.intp]
    energy: float
    sensitivity: float

    def at(self, price: float) -> float:
        """What it costs when a nat has a price."""
        return self.energy + price * self.sensitivity


class AdditiveModel:
    """The profile as an integer program.

    Binary x[l, p] picks precision p for layer l. Where conversions cost energy, flow y[l, q, p] >= 0 goes
    from (l - 1, q) to (l, p), with sum_q y[l, q, p] = x[l, p] and sum_p y[l, q, p] = x[l - 1, q]; y is
    integral wherever x is. Row 0 of everything is the model's input, which has the reference precision.
    """

    def __init__(self, profile: ModelProfile) -> None:
        self._profile = profile
        layers, names = profile.layers, profile.precisions
        # Shares of the reference energy: about 1, where the solver's absolute tolerances make sense.
        scale = max(profile.reference_energy_j, 1e-30)
        start = [0.0] + [np.inf] * (len(names) - 1)
        energy_j = [
            [layer.costs[n].energy_j if n in layer.costs else np.inf for n in names] for layer in layers
        ]
        self._energy = np.array([start, *energy_j]) / scale
        self._sensitivity = np.array(
            [[0.0] * len(names)]
            + [[layer.costs[n].sensitivity if n in layer.costs else 0.0 for n in names] for layer in layers]
        )
        per_element = np.array([[profile.conversion_j.get(f"{q}->{p}", 0.0) for p in names] for q in names])
        elements = np.array([layer.shape.input_elements for layer in layers], np.float64)
        self._conversion = elements[:, None, None] * per_element / scale  # (layers, from, to)

    def solve(self, sensitivity_budget: float) -> PrecisionPlan:
        """The cheapest plan whose summed sensitivity (nats) is at most ``sensitivity_budget``.

        The cheapest to a millionth of the reference energy, the budget to a millionth of itself.

        Raises:
            ValueError: If the budget is negative: not even the reference fits.
        """
        if not sensitivity_budget >= 0:
            raise ValueError(f"sensitivity budget is {sensitivity_budget}, must be at least 0")
        allowed = np.isfinite(self._energy) & (self._sensitivity <= sensitivity_budget * (1.0 + _SLACK))
        reference = self._route(np.zeros(len(self._energy), np.intp))
        if reference.sensitivity > sensitivity_budget:
            return self._profile.reference_plan
        cheapest = self._relax(0.0, allowed)
        if cheapest.sensitivity <= sensitivity_budget:
            return self._plan(cheapest)
        best, relaxed, price = self._price(cheapest, reference, sensitivity_budget, allowed)
        if best.at(price) - relaxed.at(price) + price * (sensitivity_budget - best.sensitivity) <= _GAP:
            return self._plan(best)
        arcs = self._surviving(price, allowed, sensitivity_budget, best.energy)
        found = self._solve_arcs(arcs, sensitivity_budget)
        return self._plan(best if found is None or found.energy > best.energy else found)

    def budgets(self, count: int) -> Floats:
        """Log-spaced sensitivity budgets from the least to the most sensitive plan, (count,)."""
        largest = float(self._sensitivity.max(axis=1).sum())
        positive = self._sensitivity[self._sensitivity > 0]
        smallest = float(positive.min()) if positive.size else 1e-9
        return np.geomspace(max(smallest, 1e-10), max(largest, 1e-9), count)

    # --- relaxation -------------------------------------------------------------------------------------

    def _price(
        self, costly: _Route, frugal: _Route, budget: float, allowed: Mask
    ) -> tuple[_Route, _Route, float]:
        """Find the price per nat at which the relaxation bounds the optimum best.

        The bound is concave in the price. It is searched where the lines of a route beyond the budget and of
        one within it meet, until no route lies below that point.

        Returns:
            The cheapest route seen that keeps the budget, the relaxation's route, and the price.
        """
        best = frugal
        while True:
            price = (frugal.energy - costly.energy) / (costly.sensitivity - frugal.sensitivity)
            route = self._relax(price, allowed)
            if route.sensitivity > budget:
                ended, costly = route.at(price) >= costly.at(price) - 1e-12, route
            else:
                ended, frugal = route.at(price) >= frugal.at(price) - 1e-12, route
                best = min(best, route, key=lambda r: r.energy)
            if ended:
                return best, route, price

    def _priced(self, price: float, allowed: Mask) -> tuple[Floats, Floats]:
        """Cost of the nodes, (layers + 1, precisions), and of the arcs with the node each leads to."""
        nodes = np.where(allowed, self._energy + price * self._sensitivity, np.inf)
        return nodes, self._conversion + nodes[1:, None, :]

    def _relax(self, price: float, allowed: Mask) -> _Route:
        """The route that is cheapest when a nat costs ``price``."""
        nodes, arcs = self._priced(price, allowed)
        reached, came_from = nodes[0], np.zeros(nodes.shape, np.intp)
        for layer, arc in enumerate(arcs, 1):
            through = reached[:, None] + arc
            came_from[layer] = through.argmin(axis=0)
            reached = through.min(axis=0)
        path = np.full(len(nodes), reached.argmin())
        for layer in range(len(arcs), 0, -1):
            path[layer - 1] = came_from[layer, path[layer]]
        return self._route(path)

    def _surviving(self, price: float, allowed: Mask, budget: float, energy: float) -> Mask:
        """Which arcs the optimum may use, (layers, from, to): the others lie on none that is cheap enough.

        The priced cost of a plan that keeps the budget is at most its energy plus the whole budget's price.
        ``energy`` is that of the best such plan known; the best route through an arc may be a better one.
        """
        nodes, arcs = self._priced(price, allowed)
        columns = np.arange(nodes.shape[1])
        onward, onward_nats = np.zeros(nodes.shape), np.zeros(nodes.shape)  # from a node to the end
        for layer in range(len(arcs), 0, -1):
            ways = arcs[layer - 1] + onward[layer]
            onward[layer - 1] = ways.min(axis=1)
            onward_nats[layer - 1] = (self._sensitivity[layer] + onward_nats[layer])[ways.argmin(axis=1)]
        total, nats = np.empty(arcs.shape), np.empty(arcs.shape)
        reached, reached_nats = nodes[0], np.zeros(len(columns))
        for layer, arc in enumerate(arcs, 1):
            ways, ways_nats = reached[:, None] + arc, reached_nats[:, None] + self._sensitivity[layer]
            total[layer - 1], nats[layer - 1] = ways + onward[layer], ways_nats + onward_nats[layer]
            source = ways.argmin(axis=0)
            reached, reached_nats = ways[source, columns], ways_nats[source, columns]
        within = np.isfinite(total) & (nats <= budget)
        energy = float((total - price * nats)[within].min(initial=energy))
        return total <= energy + price * budget + 1e-9

    # --- integer program --------------------------------------------------------------------------------

    def _solve_arcs(self, surviving: Mask, budget: float) -> _Route | None:
        """The integer program over the surviving arcs; None if HiGHS finds no plan in time."""
        layer, source, target = surviving.nonzero()
        width = surviving.shape[1]
        nodes, ends = np.unique(
            np.concatenate([layer * width + source, (layer + 1) * width + target]), return_inverse=True
        )
        row, name = np.divmod(nodes, width)
        node_count, arc_count = len(nodes), len(layer) if self._profile.conversion_j else 0
        tails, heads = ends[: len(layer)][:arc_count], ends[len(layer) :][:arc_count]
        cost = np.concatenate([self._energy[row, name], self._conversion[layer, source, target][:arc_count]])
        limited = np.concatenate([self._sensitivity[row, name] / budget, np.zeros(arc_count)])
        result = milp(
            cost,
            integrality=(np.arange(len(cost)) < node_count).astype(np.uint8),
            bounds=Bounds(0, 1),
            constraints=[
                _structure(row, heads, tails),
                LinearConstraint(limited[np.newaxis], -np.inf, 1.0),
            ],
            options={"mip_rel_gap": _GAP, "time_limit": 10.0},
        )
        if result.x is None:
            return None
        chosen = np.flatnonzero(result.x[:node_count] > 0.5)
        path = np.zeros(len(self._energy), np.intp)
        path[row[chosen]] = name[chosen]
        return self._route(path)

    def _route(self, path: NDArray[np.intp]) -> _Route:
        rows = np.arange(len(path))
        converted = self._conversion[rows[:-1], path[:-1], path[1:]].sum()
        return _Route(
            path,
            float(self._energy[rows, path].sum() + converted),
            float(self._sensitivity[rows, path].sum()),
        )

    def _plan(self, route: _Route) -> PrecisionPlan:
        names = [self._profile.precisions[index] for index in route.path[1:]]
        return PrecisionPlan(dict(zip(self._profile.layer_names, names, strict=True)))


def additive_plans(profile: ModelProfile, count: int) -> list[PrecisionPlan]:
    """The additive optima of ``count`` sensitivity budgets, equal plans once, the most careful first."""
    model = AdditiveModel(profile)
    return list(dict.fromkeys(model.solve(float(nats)) for nats in model.budgets(count)))


def _structure(row: NDArray[np.intp], heads: NDArray[np.intp], tails: NDArray[np.intp]) -> LinearConstraint:
    """One node a row, and through every node as much flow in and out as it is chosen.

    Args:
        row: The row of each node; the first and the last row are where flow begins and ends.
        heads: The node each arc leads to.
        tails: The node each arc comes from.
    """
    rows, nodes, arcs = int(row[-1]) + 1, len(row), len(heads)
    number = np.arange(nodes)
    parts = [(row, number, np.ones(nodes))]
    if arcs:
        into, out = number[row > 0], number[row < rows - 1]
        flows = nodes + np.arange(arcs)
        parts += [
            (rows + heads, flows, np.ones(arcs)),
            (rows + into, into, -np.ones(len(into))),
            (rows + nodes + tails, flows, np.ones(arcs)),
            (rows + nodes + out, out, -np.ones(len(out))),
        ]
    i, j, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    height = rows + (2 * nodes if arcs else 0)
    right = np.concatenate([np.ones(rows), np.zeros(height - rows)])
    matrix = coo_array((values, (i, j)), shape=(height, nodes + arcs))
    return LinearConstraint(matrix.tocsr(), right, right)
