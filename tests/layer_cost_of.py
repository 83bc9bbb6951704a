"""Costs of layers."""

from __future__ import annotations

from wattbit.precision import Precision
from wattbit.profiling.layer_costs import MeteredCost, ModelledCost
from wattbit.profiling.profiler import LayerCost


def cost_of(costs: MeteredCost | ModelledCost, index: int, wanted: Precision) -> LayerCost:
    """The cost of a layer that has one."""
    found = costs.layer_cost(index, wanted)
    assert found is not None
    return found
