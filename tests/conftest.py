"""Fixtures that several test files share; what they are made of is in `tiny`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runtimes
import tiny
import torch
from torch import Tensor

from wattbit.energy.device_model import DeviceModel
from wattbit.execution.switchable import SwitchableModel
from wattbit.profile import ModelProfile
from wattbit.serving.bundle import ControllerBundle, save_bundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, whichever run before it."""
    torch.manual_seed(0)


@pytest.fixture
def conv_model() -> tiny.ConvNet:
    """A tiny convolutional network with BatchNorm, in eval mode; the same weights for every test."""
    return tiny.conv_model()


@pytest.fixture
def linear_model() -> tiny.TokenNet:
    """A tiny transformer-like network of linear layers, in eval mode; the same weights for every test."""
    return tiny.linear_model()


@pytest.fixture
def conv_inputs() -> Tensor:
    """64 inputs of ``conv_model``."""
    return tiny.images(64)


@pytest.fixture
def linear_inputs() -> Tensor:
    """64 inputs of ``linear_model``."""
    return tiny.tokens(64)


@pytest.fixture
def switchable(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> Iterator[SwitchableModel]:
    """``conv_model``, attached and calibrated, with the precisions ``tiny.PRECISIONS``."""
    with SwitchableModel(conv_model, conv_inputs[:2], tiny.PRECISIONS) as model:
        model.calibrate([conv_inputs])
        yield model


@pytest.fixture
def device_model() -> DeviceModel:
    """The device table ``edge_7nm``."""
    return tiny.device_model()


@pytest.fixture
def profile() -> ModelProfile:
    """The profile of ``conv_model`` on ``device_model``."""
    return tiny.profile()


@pytest.fixture
def bundle() -> ControllerBundle:
    """A real bundle for ``conv_model``, with two certified plans (``tiny.DEPLOYED``) and a policy."""
    return tiny.bundle()


@pytest.fixture
def bundle_dir(bundle: ControllerBundle, tmp_path: Path) -> Path:
    """The folder that ``bundle`` was saved to."""
    folder = tmp_path / "bundle"
    save_bundle(bundle, folder)
    return folder


@pytest.fixture
def make_runtime(bundle: ControllerBundle, conv_model: tiny.ConvNet) -> Iterator[runtimes.MakeRuntime]:
    """Makes runtimes of ``bundle``, and closes them."""
    made = []

    def build(**settings: Any) -> PrecisionRuntime:
        settings = {"tolerance_pp": runtimes.TOLERANCE_PP, **settings}
        made.append(PrecisionRuntime(PrecisionController(bundle), conv_model, **settings))
        return made[-1]

    yield build
    for runtime in made:
        runtime.close()


@pytest.fixture
def reference_answer() -> Tensor:
    """What the unmodified ``conv_model`` answers to ``runtimes.X``."""
    return runtimes.reference_answer()


@pytest.fixture
def quantized_answer(bundle: ControllerBundle) -> Tensor:
    """What the certified plan of ``bundle`` answers to ``runtimes.X``."""
    return runtimes.quantized_answer(bundle)


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Where an audit log may be written."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def float32_switches() -> Iterator[None]:
    """Puts back what a GPU report switches for the whole process."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = conv.fp32_precision, matmul.fp32_precision
    yield
    conv.fp32_precision, matmul.fp32_precision = before
