"""Questions about attached models that several test files ask."""

from __future__ import annotations

from torch import nn

from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan


def uniform(model: SwitchableModel, name: str) -> PrecisionPlan:
    return PrecisionPlan.uniform(model.layer_names, name)


def unpatched(model: nn.Module) -> bool:
    return all("forward" not in module.__dict__ for module in model.modules())
