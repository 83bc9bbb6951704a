"""Layers that run as one (a folded BatchNorm, codes between int8 layers) answer what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import uniform
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wattbit.execution.kernels import LayerWeights, cpu
from wattbit.execution.switchable import SwitchableModel
from wattbit.numerics import AffineQuantizer, dequantize_weight, quantize


@pytest.fixture(autouse=True)
def _native_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the native convolution everywhere; where oneDNN's saturates, by a stand-in for its arithmetic."""
    if not cpu.has_vnni():
        monkeypatch.setattr(cpu, "has_vnni", lambda: True)
        monkeypatch.setattr(cpu, "pack_conv_codes", _pack_exactly)


def _pack_exactly(
    layer: LayerWeights, codes: Tensor, scale: Tensor, quantizer: AffineQuantizer, emitted: Any
) -> Any:
    def run(x: Tensor) -> Tensor:
        y = layer.multiply(
            (x.float() - quantizer.zero_point) * quantizer.scale, dequantize_weight(codes, scale)
        )
        y = y if layer.bias is None else y + layer.per_output(layer.bias)
        if emitted.reader is None:
            return y
        return quantize(y.relu() if emitted.relu else y, emitted.reader)

    return run


Act = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions with a BatchNorm and a ReLU between them; ``how`` says what else reads the values."""

    def __init__(self, how: str = "plain", norm: bool = True) -> None:
        super().__init__()
        self.how = how
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.relu6 = nn.ReLU6(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.kept: Any = None

    def forward(self, x: Tensor, more: bool = False, **options: Any) -> Any:
        how = options.get("how", self.how)
        a = self.conv1(x)
        if how == "written before the norm":
            a.mul_(2.0)
        b = self.norm(a)
        if how == "relu6 in place":
            b = self.relu6(b)
        elif how == "relu6 in place after relu":
            b = self.relu6(self.relu(b))
        else:
            b = self.relu(b)
        match how:
            case "clamped in place":
                b.clamp_(max=1e4)
            case "multiplied in place":
                b.mul_(0.5)
            case "added in place":
                b += 0.25
            case "item written":
                b[:, 0] = 0.0
            case "view written":
                b.view(-1)[::2] = 0.0
            case "data written":
                b.data.clamp_(max=0.1)
            case "out written":
                torch.add(b, 1.0, out=b)
            case "value decides":
                b = b if float(b.mean()) > -1e9 else b * 0.0
            case "dropout in place":
                F.leaky_relu_(b, 0.1)
        c = self.conv2(b)
        logits = c.mean((2, 3))
        match how:
            case "conv returned":
                return logits, a
            case "relu returned":
                return {"logits": logits, "features": [b]}
            case "norm mean returned":
                return logits, (b.mean(), {"a": a.flatten(1)})
            case "kept":
                self.kept = b
            case "conv kept":
                self.kept = [a]
            case "detached and returned":
                return logits, b.detach(), a.view(-1)
        return (logits, {"a": a, "b": b}) if more else logits


def net(how: str = "plain", norm: bool = True) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Net(how, norm)
        if isinstance(model.norm, nn.BatchNorm2d):
            nn.init.uniform_(model.norm.weight, 0.5, 3.0)
            nn.init.uniform_(model.norm.bias, -1.0, 1.0)
            nn.init.uniform_(model.norm.running_mean, -1.0, 1.0)  # type: ignore[arg-type]
        return model.eval()


X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
HOW = [
    "plain", "written before the norm", "relu6 in place", "relu6 in place after relu", "clamped in place",
    "multiplied in place", "added in place", "item written", "view written", "data written", "out written",
    "value decides", "dropout in place", "conv returned", "relu returned", "norm mean returned", "kept",
    "conv kept", "detached and returned",
]  # fmt: skip


def assert_near(found: Any, expected: Any, share: float = 0.05) -> None:
    """Each tensor is float32 and near the expected one, measured by its spread."""
    pairs = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    for y, wanted in pairs:
        assert y.dtype == wanted.dtype
        assert float((y - wanted).abs().max()) <= share * float(wanted.abs().max())


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("how", HOW)
@torch.inference_mode()
def test_whatever_reads_the_values_between_two_layers_finds_what_the_model_computes(
    how: str, name: str, norm: bool
) -> None:
    expected = net(how, norm)(X)
    model = net(how, norm)
    with SwitchableModel(model, X[:2], [name]) as switchable:
        switchable.calibrate([X])
        for _ in range(2):
            assert_near(switchable.run(X, uniform(switchable, name)), expected)
        if "kept" in how:
            assert_near(model.kept, net_kept(how, norm))


def net_kept(how: str, norm: bool) -> Any:
    model = net(how, norm)
    model(X)
    return model.kept


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("how", [*HOW, "more"])
@torch.inference_mode()
def test_a_call_that_takes_another_path_than_the_example_did_finds_it_too(
    how: str, name: str, norm: bool
) -> None:
    inputs = {"x": X, "more": True} if how == "more" else {"x": X, "how": how}
    expected = net("plain", norm)(**inputs)
    with SwitchableModel(net("plain", norm), X[:2], [name]) as switchable:
        switchable.calibrate([X])
        plan = uniform(switchable, name)
        plain = switchable.run(X, plan)
        # What the other path multiplies by two was not calibrated, and is clipped.
        assert_near(switchable.run(inputs, plan), expected, 0.2)
        switchable.switch(plan)
        assert_near(switchable.model(**inputs), expected, 0.2)
        assert_near(switchable.run(X, plan), plain)


@pytest.mark.parametrize("part", ["conv1", "norm", "relu", "conv2"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@torch.inference_mode()
def test_a_hook_sees_what_the_model_computes(part: str, when: str, kind: str) -> None:
    def seen(model: Net, run: Callable[[Net], Any]) -> list[Tensor]:
        values: list[Tensor] = []
        hook = getattr(model.get_submodule(part), kind)(lambda module, *read: values.append(read))
        run(model)
        hook.remove()
        return values

    expected = seen(net(), lambda model: model(X))
    model = net()
    early: list[Any] = []
    if when == "before":
        getattr(model.get_submodule(part), kind)(lambda module, *read: early.append(read))
    with SwitchableModel(model, X[:2], ["int8"]) as switchable:
        switchable.calibrate([X])
        early.clear()
        plan = uniform(switchable, "int8")
        assert_near(seen(model, lambda _: switchable.run(X, plan)), expected)
        if when == "before":
            assert_near(early, expected)


@torch.inference_mode()
def test_a_part_that_is_called_by_itself_gives_what_the_model_computes() -> None:
    expected = net().conv1(X)
    with SwitchableModel(net(), X[:2], ["int8"]) as switchable:
        switchable.calibrate([X])
        switchable.switch(uniform(switchable, "int8"))
        assert_near(switchable.model.get_submodule("conv1")(X), expected)


@torch.inference_mode()
def test_layers_still_run_as_one_where_nobody_looks() -> None:
    with SwitchableModel(net(), X[:2], ["int8"]) as switchable:
        switchable.calibrate([X])
        assert switchable.folds_batch_norm == (True, False)
        kernels = switchable.prepare(uniform(switchable, "int8"))
        model = switchable.model
        assert isinstance(model, Net)
        assert kernels[0] is not None
        assert kernels[0].code_readers == (model.norm, model.relu, model.conv2)
        switchable.run(X, uniform(switchable, "int8"))
        assert switchable.prepare(uniform(switchable, "int8")) is kernels


@torch.inference_mode()
def test_inputs_that_the_model_refuses_do_not_part_its_layers() -> None:
    with SwitchableModel(net(), X[:2], ["int8"]) as switchable:
        switchable.calibrate([X])
        plan = uniform(switchable, "int8")
        kernels = switchable.prepare(plan)
        with pytest.raises(RuntimeError):
            switchable.run(X[:, :2], plan)
        assert switchable.prepare(plan) is kernels
