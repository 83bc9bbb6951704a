"""wattbit: run each layer of a network at the precision it needs, and no more.

The names below load what they need when they are first used, so that the controller, the policy and bundles
can be read where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattbit.execution.switchable import SwitchableModel
    from wattbit.plan import PrecisionPlan
    from wattbit.precision import PRECISIONS, Precision
    from wattbit.profile import ModelProfile
    from wattbit.profiling.profiler import measure_profile
    from wattbit.serving.bundle import ControllerBundle, load_bundle
    from wattbit.serving.controller import PrecisionController
    from wattbit.serving.runtime import PrecisionRuntime

__version__ = "0.1.0"

_HOMES = {
    "ControllerBundle": "serving.bundle",
    "load_bundle": "serving.bundle",
    "PrecisionController": "serving.controller",
    "SwitchableModel": "execution.switchable",
    "PrecisionPlan": "plan",
    "PRECISIONS": "precision",
    "Precision": "precision",
    "ModelProfile": "profile",
    "measure_profile": "profiling.profiler",
    "PrecisionRuntime": "serving.runtime",
}

__all__ = [
    "PRECISIONS",
    "ControllerBundle",
    "ModelProfile",
    "Precision",
    "PrecisionController",
    "PrecisionPlan",
    "PrecisionRuntime",
    "SwitchableModel",
    "load_bundle",
    "measure_profile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wattbit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wattbit.{_HOMES[name]}"), name)
