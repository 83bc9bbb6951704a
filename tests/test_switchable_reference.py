"""Attaching a model leaves its reference bit for bit as it was, and gives the model back."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import tiny
import torch
from attached import uniform, unpatched
from torch import Tensor, nn

from wattbit.errors import ModelError, PrecisionError
from wattbit.execution.switchable import SwitchableModel

# --- the reference, and the way back ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inputs"), [(tiny.conv_model, tiny.images), (tiny.linear_model, tiny.tokens)]
)
def test_the_reference_is_bit_identical_while_attached_and_afterwards(make: Any, inputs: Any) -> None:
    model, x = make(), inputs(16)
    expected = model(x)
    state = copy.deepcopy(model.state_dict())
    with SwitchableModel(model, x[:2], ["int8", "int4"]) as switchable:
        assert torch.equal(model(x), expected)
        switchable.calibrate([x])
        switchable.switch(uniform(switchable, "int4"))
        assert not torch.equal(model(x), expected)
        assert torch.equal(switchable.run(x, switchable.reference_plan), expected)
        switchable.switch(switchable.reference_plan)
        assert torch.equal(model(x), expected)
        switchable.switch(uniform(switchable, "int8"))
    assert torch.equal(model(x), expected)
    assert unpatched(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_training_flags_are_given_back_as_they_were(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    conv_model.train()
    conv_model.stem_bn.eval()
    flags = {name: module.training for name, module in conv_model.named_modules()}
    switchable = SwitchableModel(conv_model, conv_inputs[:2], ["int8"])
    assert not any(module.training for module in conv_model.modules())
    switchable.detach()
    assert {name: module.training for name, module in conv_model.named_modules()} == flags


def test_a_model_in_training_mode_runs_without_dropout_while_attached(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    expected = conv_model(conv_inputs)
    assert conv_model.stem_bn.running_mean is not None
    statistics = conv_model.stem_bn.running_mean.clone()
    with SwitchableModel(conv_model.train(), conv_inputs[:2], ["int8"]):
        assert torch.equal(conv_model(conv_inputs), expected)
    assert torch.equal(conv_model.stem_bn.running_mean, statistics)


def test_detaching_twice_does_nothing_more(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    switchable = SwitchableModel(conv_model, conv_inputs[:2], ["int8"])
    switchable.detach()
    conv_model.train()
    switchable.detach()
    assert conv_model.training


def test_a_forward_that_was_replaced_before_is_given_back(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    calls = []
    layer = conv_model.head
    own = layer.forward

    def wrapped(input: Tensor) -> Tensor:  # noqa: A002
        calls.append(len(input))
        return own(input)

    layer.forward = wrapped  # type: ignore[method-assign]
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]):
        calls.clear()
        conv_model(conv_inputs)
        assert calls == [64]
    assert layer.__dict__["forward"] is wrapped


def test_a_body_that_fails_still_gives_the_model_back(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with pytest.raises(KeyError), SwitchableModel(conv_model, conv_inputs[:2], ["int8"]):
        raise KeyError
    assert unpatched(conv_model)


class Failing(nn.Module):
    """Fails whenever it runs, or only from the n-th time on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.runs, self.after = 0, after

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y: Tensor = self.layer(x)
        if self.runs > self.after:
            raise RuntimeError("the model fails")
        return y


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_model_that_fails_while_it_is_attached_is_given_back(after: int) -> None:
    model = Failing(after).train()
    with pytest.raises(RuntimeError, match="the model fails"):
        SwitchableModel(model, torch.zeros(2, 2), ["int8"])
    assert unpatched(model)
    assert model.training
    assert model.layer.training


def test_a_refused_model_keeps_its_mode(linear_model: tiny.TokenNet, linear_inputs: Tensor) -> None:
    linear_model.double().train()
    with pytest.raises(ModelError, match="float64"):
        SwitchableModel(linear_model, linear_inputs[:2].double(), ["int8"])
    assert linear_model.training


def test_nan_weights_are_refused_by_name(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    conv_model.stem.weight.data[0] = torch.nan
    with pytest.raises(ModelError, match=r"stem.weight holds 9 NaN or infinite of 72 values"):
        SwitchableModel(conv_model, conv_inputs[:2], ["int8"])


def test_a_model_without_switchable_layers_is_refused(conv_inputs: Tensor) -> None:
    with pytest.raises(ModelError, match="0 switchable layers"):
        SwitchableModel(nn.Flatten(), conv_inputs[:2], ["int8"])


def test_a_model_is_attached_once_at_a_time(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    with pytest.raises(
        ModelError, match="the model is attached already; detach or close what holds it first"
    ):
        SwitchableModel(switchable.model, conv_inputs[:2], ["int8"])
    outer = nn.Sequential(switchable.model)
    with pytest.raises(ModelError, match="module '0' of the model is attached already"):
        SwitchableModel(outer, conv_inputs[:2], ["int8"])
    assert switchable.run(conv_inputs, switchable.reference_plan).shape == (64, 5)


def test_an_unknown_precision_is_refused_before_the_model_is_touched(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    with pytest.raises(PrecisionError, match="unknown precision 'int9'"):
        SwitchableModel(conv_model.train(), conv_inputs[:2], ["int9"])
    assert conv_model.training


# --- copies -----------------------------------------------------------------------------------------------


def test_a_deep_copy_of_an_attached_model_is_an_ordinary_model(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    reference = switchable.run(conv_inputs, switchable.reference_plan)
    switchable.switch(uniform(switchable, "int4"))
    model = switchable.model
    assert isinstance(model, tiny.ConvNet)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(conv_inputs), reference)
    # It runs its own weights, and switching the original does not reach it.
    copied.head.weight.data.zero_()
    assert torch.equal(copied(conv_inputs), copied.head.bias.expand(64, -1))
    assert model.head.weight.abs().sum() > 0
    with SwitchableModel(copy.deepcopy(copied), conv_inputs[:2], ["int8"]) as other:
        assert torch.equal(other.run(conv_inputs), copied(conv_inputs))


def test_a_deep_copy_keeps_a_forward_that_was_replaced_before(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    conv_model.head.forward = torch.zeros_like  # type: ignore[method-assign]
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]):
        copied = copy.deepcopy(conv_model)
    assert copied.head.__dict__["forward"] is torch.zeros_like


def test_an_attached_model_is_not_pickled_by_mistake(switchable: SwitchableModel) -> None:
    with pytest.raises(ModelError, match="cannot be pickled while it is attached"):
        pickle.dumps(switchable.model)
    switchable.detach()
    assert pickle.loads(pickle.dumps(switchable.model)).head.out_features == 5  # noqa: S301


def test_the_signature_of_an_attached_model_is_its_own(switchable: SwitchableModel) -> None:
    assert list(inspect.signature(switchable.model.forward).parameters) == ["x"]
    assert list(inspect.signature(switchable.model.get_submodule("head").forward).parameters) == ["input"]
