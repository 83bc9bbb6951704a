"""Runtimes of the tiny bundle, and what its plans answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from audit_logs import records_of
from torch import Tensor

from wattbit.calibration import calibration_from_json
from wattbit.execution import packing
from wattbit.execution.kernels import PackedKernel, pack
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.runtime import PrecisionRuntime

MakeRuntime = Callable[..., PrecisionRuntime]
TOLERANCE_PP, PRECISION = tiny.DEPLOYED[1]
X = tiny.images(16)


events = records_of


def same(output: Tensor, expected: Tensor) -> bool:
    return torch.equal(output.detach(), expected)


def reference_answer() -> Tensor:
    """What the unmodified model answers to ``X``."""
    answer: Tensor = tiny.conv_model()(X)
    return answer.detach()


def quantized_answer(bundle: ControllerBundle) -> Tensor:
    """What the certified plan answers to ``X``."""
    with SwitchableModel(tiny.conv_model(), X[:2], bundle.profile.precisions) as model:
        model.load_calibration(calibration_from_json(bundle.calibration_json))
        answer: Tensor = model.run(X, bundle.plans[1].plan)
        return answer.detach()


def broken_kernels(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Let every packed kernel change its result."""

    def broken(*args: Any, **settings: Any) -> PackedKernel:
        kernel = pack(*args, **settings)
        return PackedKernel(lambda x: change(kernel.run(x)), kernel.native)

    monkeypatch.setattr(packing, "pack", broken)
