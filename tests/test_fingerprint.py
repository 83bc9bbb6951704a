"""The fingerprint of a model: the same for the same weights, another for any change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import nn

from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.storage.fingerprint import model_fingerprint


def test_equal_weights_have_equal_fingerprints(conv_model: tiny.ConvNet) -> None:
    found = model_fingerprint(conv_model)
    assert len(found) == 64
    assert model_fingerprint(copy.deepcopy(conv_model)) == found
    other = tiny.ConvNet()
    assert model_fingerprint(other) != found
    other.load_state_dict(conv_model.state_dict())
    assert model_fingerprint(other) == found


def test_modes_and_gradients_do_not_matter(conv_model: tiny.ConvNet) -> None:
    found = model_fingerprint(conv_model)
    conv_model.train().requires_grad_(False)
    assert model_fingerprint(conv_model) == found


def test_memory_layout_does_not_matter(conv_model: tiny.ConvNet) -> None:
    found = model_fingerprint(conv_model)
    for layer in (conv_model.stem, conv_model.depthwise, conv_model.pointwise):
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    assert model_fingerprint(conv_model) == found


def test_attaching_does_not_matter(switchable: SwitchableModel) -> None:
    found = model_fingerprint(switchable.model)
    switchable.switch(switchable.reference_plan.replace(stem="int4"))
    assert model_fingerprint(switchable.model) == found == model_fingerprint(tiny.conv_model())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.head.weight.data[0].mul_(1 + 1e-6),
        lambda model: model.stem_bn.running_mean.add_(1e-3),
        lambda model: model.stem_bn.num_batches_tracked.add_(1),
        lambda model: model.half(),
        lambda model: setattr(model, "head", nn.Linear(16, 6)),
        lambda model: setattr(model, "extra", nn.Linear(1, 1)),
        lambda model: setattr(model.head, "weight", nn.Parameter(model.head.weight.reshape(16, 5))),
    ],
)
def test_any_change_of_the_weights_changes_the_fingerprint(
    conv_model: tiny.ConvNet, change: Callable[[nn.Module], object]
) -> None:
    before = model_fingerprint(conv_model)
    change(conv_model)
    assert model_fingerprint(conv_model) != before


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_tensors_of_any_type_and_shape_count(dtype: torch.dtype) -> None:
    model = nn.Module()
    for name, tensor in (("scalar", torch.ones(())), ("empty", torch.ones(0, 3)), ("grid", torch.ones(2, 2))):
        model.register_buffer(name, tensor.to(dtype))
    before = model_fingerprint(model)
    model.get_buffer("scalar").zero_()
    assert model_fingerprint(model) != before


def test_extra_state_that_is_no_tensor_is_passed_over() -> None:
    class WithState(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    assert len(model_fingerprint(WithState(2, 2))) == 64


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    for model in (empty, nn.LazyLinear(2)):
        with pytest.raises(ModelError, match=r"holds no values .* load the weights first"):
            model_fingerprint(model)
