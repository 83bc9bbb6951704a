"""The weights and geometry of one layer, taken out of its module, BatchNorm folded in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.execution.patching import is_replaced


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What a kernel packs.

    Attributes:
        weight: (out, in) for linear layers, (out, in / groups, kh, kw) for convolutions; float32.
        bias: (out,) or None.
        stride: Of a convolution; (1, 1) for linear layers, as the other geometry.
        padding: Zeros added at each side of height and width.
        dilation: Of a convolution.
        groups: Of a convolution.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_conv(self) -> bool:
        """True for a 2-D convolution, False for a linear layer."""
        return self.weight.ndim == 4

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run the layer on ``x`` with another ``weight`` of the same shape (and this bias)."""
        return self._apply(x, weight, self.bias)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """As `apply`, without the bias."""
        return self._apply(x, weight, None)

    def per_output(self, values: Tensor) -> Tensor:
        """A value for each output channel, (out,), in the shape that spreads over the layer's output."""
        return values.reshape(-1, 1, 1) if self.is_conv else values

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_conv:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.linear(x, weight, bias)


def is_switchable(module: nn.Module) -> bool:
    """True if wattbit can run this module at other precisions: Linear, and Conv2d padded with zeros."""
    return isinstance(module, nn.Linear | nn.Conv2d) and why_left_alone(module) is None


def why_left_alone(module: nn.Linear | nn.Conv2d) -> str | None:
    """Why a layer does not switch, for people; None if it does.

    A layer with a forward pass of its own, of its class or patched in, computes something else.
    """
    kind, base = type(module), nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    for name in ("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl"):
        if is_replaced(module, name):
            return f"its {name} is replaced"
        if getattr(kind, name, None) is not getattr(base, name, None):
            return f"its class {kind.__name__} has a {name} of its own"
    if module.__dict__.get("_compiled_call_impl") is not None:
        return "it is compiled by itself"
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return f"its padding is {module.padding!r} of {module.padding_mode}"
    return None


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a switchable ``module``, also where it is computed (parametrized, pruned, normed)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.detach()


def take_weights(module: nn.Module, batch_norm: nn.BatchNorm2d | None = None) -> LayerWeights:
    """Copy the weights of a switchable ``module``, with the ``batch_norm`` that follows it folded in.

    Folding (Jacob et al. 2018, section 3.2): ``w' = w * g / sqrt(var + eps)``,
    ``b' = (b - mean) * g / sqrt(var + eps) + beta``; computed in float64, stored in float32.
    """
    weight = weight_of(module)
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    if batch_norm is not None:
        weight, bias = _fold(weight, bias, batch_norm)
    weight = weight.to(torch.float32, copy=True)
    bias = None if bias is None else bias.to(torch.float32, copy=True)
    if isinstance(module, nn.Conv2d):
        return LayerWeights(
            weight,
            bias,
            _pair(module.stride),
            _pair(module.padding),
            _pair(module.dilation),
            module.groups,
        )
    return LayerWeights(weight, bias)


def _fold(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        gain = gain * norm.weight.detach().double()
    shift = -mean if bias is None else bias.double() - mean
    shift = shift * gain
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    return weight.double() * gain.reshape(-1, 1, 1, 1), shift


def _pair(value: str | tuple[int, ...]) -> tuple[int, int]:
    # `why_left_alone` has refused padding that is given as a text.
    return int(value[0]), int(value[1])
