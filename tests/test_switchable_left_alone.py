"""A layer that somebody has given another forward pass is left alone, and said to be."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import uniform
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel

X = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 3)).eval()


def circular(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)


def patch_forward(layer: Any) -> None:
    original = layer.forward
    layer.forward = lambda x: original(x) + 0.5 * x.mean()


def patch_conv_forward(layer: Any) -> None:
    layer._conv_forward = MethodType(circular, layer)


def patch_class(layer: Any) -> None:
    layer.__class__ = type(
        "Own", (type(layer),), {"__call__": lambda self, x: nn.Module.__call__(self, x) * 3}
    )


def compile_it(layer: Any) -> None:
    layer._compiled_call_impl = lambda x: layer._call_impl(x) - 1.0


@pytest.mark.parametrize(
    ("name", "patch", "reason"),
    [
        ("0", patch_forward, "its forward is replaced"),
        ("0", patch_conv_forward, "its _conv_forward is replaced"),
        ("0", patch_class, "its class Own has a __call__ of its own"),
        ("3", patch_forward, "its forward is replaced"),
        ("5", patch_forward, "its forward is replaced"),
        ("5", patch_class, "its class Own has a __call__ of its own"),
        ("5", compile_it, "it is compiled by itself"),
    ],
)
@torch.inference_mode()
def test_a_layer_whose_forward_is_patched_is_left_alone_and_said_to_be(
    name: str, patch: Any, reason: str
) -> None:
    model = net()
    patch(model.get_submodule(name))
    expected = model(X)
    with SwitchableModel(model, X, ["bf16", "int8"]) as switchable:
        assert switchable.left_alone == {name: reason}
        assert name not in switchable.layer_names
        switchable.calibrate([X])
        for precision in ("bf16", "int8"):
            y = switchable.run(X, uniform(switchable, precision))
            assert float((y - expected).abs().max()) < 0.06 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["1", "2"])
@torch.inference_mode()
def test_a_patched_norm_or_relu_between_two_layers_is_run(name: str) -> None:
    model = net()
    patch_forward(model.get_submodule(name))
    expected = model(X)
    with SwitchableModel(model, X, ["int8"]) as switchable:
        switchable.calibrate([X])
        assert not switchable.left_alone
        y = switchable.run(X, uniform(switchable, "int8"))
        assert float((y - expected).abs().max()) < 0.06 * float(expected.abs().max())


def test_other_layers_that_cannot_switch_say_why() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 3, padding="same"),
        weight_norm(nn.Conv2d(2, 2, 1)),
        nn.Linear(5, 5),
    ).eval()
    model.unused = nn.Linear(2, 2)
    body = model[:4]
    model.forward = lambda x: body(x)  # type: ignore[method-assign]
    with SwitchableModel(model, X, ["int8"]) as switchable:
        assert switchable.layer_names == ("2", "3")
        assert switchable.left_alone == {
            "0": "its padding is (1, 1) of circular",
            "1": "its padding is 'same' of zeros",
            "unused": "the forward pass does not call it as a module",
        }


def test_a_model_of_patched_layers_only_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 5))
    patch_forward(model[0])
    with pytest.raises(ModelError, match="0 switchable layers"):
        SwitchableModel(model, X, ["int8"])
