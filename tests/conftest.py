"""Fixtures that several test files share; what they are made of is in `tiny`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from wattbit.energy.device_model import DeviceModel
from wattbit.execution.switchable import SwitchableModel
from wattbit.profile import ModelProfile
from wattbit.serving.bundle import ControllerBundle, save_bundle

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
