"""Convolutions of any geometry, and kernels of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.calibration import ActivationObserver, LayerCalibration
from wattbit.execution.kernels import LayerWeights, pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.precision import precision

INT8 = precision("int8")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def calibrated(x: Tensor) -> LayerCalibration:
    observer = ActivationObserver("layer")
    observer.observe(x)
    return observer.calibrate((2, 3, 4, 6, 8))


def emulate(layer: LayerWeights, name: str, x: Tensor) -> Tensor:
    return pack(layer, precision(name), calibrated(x), native=False).run(x)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[LayerWeights, Tensor]:
    """A convolution of any geometry, and an input."""
    torch.manual_seed(draw(st.integers(0, 9)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.sampled_from([1, 2, 16, 32]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    conv = nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        # PyTorch's own float convolution can crash where windows lie in the padding as a whole.
        padding=draw(st.tuples(*(st.integers(0, side - 1) for side in kernel))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    x = random(draw(st.integers(1, 3)), channels, draw(st.integers(6, 9)), draw(st.integers(6, 9)))
    return take_weights(conv), x


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": (2, 3)},
    "padded": {"padding": (2, 1)},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 64},
    "depthwise, two channels each": {"groups": 64, "out": 128, "stride": 2, "padding": 1},
    "pointwise": {"kernel": 1},
    "tall": {"kernel": (3, 1), "bias": False},
}


def convolution(channels: int = 64, out: int = 64, kernel: Any = 3, **geometry: Any) -> LayerWeights:
    return take_weights(nn.Conv2d(channels, out, kernel, **geometry))
