"""Runtimes of the tiny bundle, and what its plans answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

from wattbit.calibration import calibration_from_json
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.runtime import PrecisionRuntime

MakeRuntime = Callable[..., PrecisionRuntime]
TOLERANCE_PP, PRECISION = tiny.DEPLOYED[1]
X = tiny.images(16)


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
