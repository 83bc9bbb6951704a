"""The single layers that `scripts.bench kernels` measures: one of each type, in shapes of real networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.calibration import ActivationObserver, LayerCalibration, integer_widths
from wattbit.execution.kernels import LayerWeights
from wattbit.precision import PRECISIONS

BATCH = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A layer and its input.

    Attributes:
        name: Type and shape.
        kind: Its type, such as ``linear`` or ``conv depthwise``.
        layer: Weights, in the layout in which torch's float32 convolution is fastest.
        x: (batch, in), or (batch, channels, height, width) in channels-last layout.
    """

    name: str
    kind: str
    layer: LayerWeights
    x: Tensor

    @property
    def batch(self) -> int:
        """Samples in the input."""
        return len(self.x)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return self.reference().numel() * self.layer.weight[0].numel()

    @property
    def traffic_bytes(self) -> int:
        """Bytes that must move: float32 input and output, and the weights as the reference has them."""
        return 4 * (self.x.numel() + self.reference().numel() + self.layer.weight.numel())

    def reference(self) -> Tensor:
        """One run in float32."""
        return self.layer.apply(self.x, self.layer.weight)

    def calibration(self) -> LayerCalibration:
        """What calibrating on the input gives."""
        observer = ActivationObserver(self.name)
        observer.observe(self.x)
        return observer.calibrate(integer_widths(PRECISIONS.values()))


def layer_cases(device: torch.device | str = "cpu") -> Iterator[Case]:
    """Every case, weights and inputs the same at every call."""
    for width, out, batch in ((768, 3072, 64), (768, 3072, 512), (384, 1536, 1024), (1536, 384, 1024)):
        yield linear_case(width, out, batch, device)
    for kind, make in _CONVS.items():
        yield make(kind, device)


def linear_case(width: int, out: int, batch: int, device: torch.device | str = "cpu") -> Case:
    """A linear layer as in a transformer; its inputs are normally distributed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator) / width**0.5
    bias = torch.randn(out, generator=generator)
    x = torch.randn(batch, width, generator=generator)
    layer = LayerWeights(weight.to(device), bias.to(device))
    return Case(f"linear {width}->{out}", "linear", layer, x.to(device))


def conv_case(
    kind: str,
    device: torch.device | str,
    channels: int,
    out: int,
    side: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    batch: int = BATCH,
) -> Case:
    """A convolution as in a residual network; it reads the output of a ReLU."""
    generator = torch.Generator().manual_seed(0)
    width = channels // groups
    weight = torch.randn(out, width, kernel, kernel, generator=generator) / (width * kernel**2) ** 0.5
    bias = torch.randn(out, generator=generator)
    x = F.relu(torch.randn(batch, channels, side, side, generator=generator))
    layer = LayerWeights(
        weight.to(device, memory_format=torch.channels_last),
        bias.to(device),
        (stride, stride),
        (kernel // 2, kernel // 2),
        groups=groups,
    )
    split = " depthwise" if groups == channels else f" groups {groups}"
    extras = f"{f' stride {stride}' if stride > 1 else ''}{split if groups > 1 else ''}"
    name = f"conv {channels}->{out} {kernel}x{kernel} {side}x{side}{extras}"
    return Case(name, kind, layer, x.to(device, memory_format=torch.channels_last))


_CONVS: dict[str, Callable[[str, torch.device | str], Case]] = {
    "conv 3x3": lambda kind, device: conv_case(kind, device, 64, 64, 28, 3),
    "conv 1x1": lambda kind, device: conv_case(kind, device, 64, 128, 28, 1),
    "conv strided": lambda kind, device: conv_case(kind, device, 64, 128, 28, 3, stride=2),
    "conv grouped": lambda kind, device: conv_case(kind, device, 64, 64, 28, 3, groups=8),
    "conv depthwise": lambda kind, device: conv_case(kind, device, 64, 64, 28, 3, groups=64),
}
