"""Calibration sees the reference, and layers can be run one by one."""

from __future__ import annotations

import pytest
import tiny
import torch
from attached import uniform
from torch import Tensor, nn

from wattbit.errors import DataError, ModelError
from wattbit.execution.switchable import SwitchableModel


def test_calibration_sees_the_reference_whatever_plan_is_active(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8", "int2"]) as switchable:
        first = switchable.calibrate([conv_inputs])
        switchable.switch(uniform(switchable, "int2"))
        assert switchable.calibrate([conv_inputs]) == first
        assert set(first) == set(switchable.layer_names)
        assert set(first["stem"].affine) == {2, 8}


def test_a_new_calibration_reaches_the_active_plan(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    switchable.switch(uniform(switchable, "int8"))
    before = switchable.run(conv_inputs)
    switchable.calibrate([100.0 * conv_inputs])
    after = switchable.run(conv_inputs)
    assert not torch.equal(before, after)
    assert torch.equal(after, switchable.run(conv_inputs, uniform(switchable, "int8")))


def test_calibrating_on_nothing_is_refused(switchable: SwitchableModel) -> None:
    with pytest.raises(ModelError, match="layer 'stem' ran on 0 calibration samples"):
        switchable.calibrate([])


def test_calibrating_on_inputs_that_are_not_finite_is_refused(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    before = switchable.calibration
    with pytest.raises(ModelError, match="layer 'stem' reads NaN or infinite activations"):
        switchable.calibrate([conv_inputs * torch.nan])
    assert switchable.calibration == before


def test_a_calibration_that_does_not_fit_is_refused(switchable: SwitchableModel) -> None:
    good = dict(switchable.calibration)
    with pytest.raises(ModelError, match="calibration lacks layer 'head'; calibrate this model again"):
        switchable.load_calibration({name: good[name] for name in good if name != "head"})
    narrow = type(good["stem"])(1.0, {8: good["stem"].affine[8]})
    with pytest.raises(ModelError, match="calibration of layer 'stem' lacks 4-bit activations"):
        switchable.load_calibration({**good, "stem": narrow})
    assert switchable.calibration == good


def test_layer_inputs_are_those_of_the_reference_call_by_call() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            y += x
            z: Tensor = self.layer(y)
            y.zero_()
            return z

    x = torch.randn(3, 4)
    model = InPlace().eval()
    with SwitchableModel(model, x, ["int8"]) as switchable, torch.inference_mode():
        ((first, second),) = switchable.layer_inputs(x)
        assert torch.equal(first, x)
        assert torch.equal(second, model.layer(x) + x)


def test_one_layer_by_itself_runs_with_its_batch_norm(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    net = switchable.model
    assert isinstance(net, tiny.ConvNet)
    expected = net.stem_bn(net.stem(conv_inputs))
    switchable.switch(uniform(switchable, "int4"))
    assert torch.equal(switchable.layer_callable(0, "fp32")(conv_inputs), expected)
    torch.testing.assert_close(
        switchable.layer_callable(0, "int8")(conv_inputs), expected, atol=0.05, rtol=0.05
    )
    pooled = torch.randn(3, 16)
    assert torch.equal(switchable.layer_callable(3, "fp32")(pooled), torch.nn.functional.linear(
        pooled, net.head.weight, net.head.bias
    ))  # fmt: skip


def test_logits_are_collected_over_batches(switchable: SwitchableModel, conv_inputs: Tensor) -> None:
    plan = uniform(switchable, "int8")
    logits = switchable.logits([conv_inputs[:40], conv_inputs[40:]], plan)
    torch.testing.assert_close(logits, switchable.run(conv_inputs, plan).detach())
    assert logits.dtype == torch.float32
    with pytest.raises(DataError, match="0 samples give no logits"):
        switchable.logits([], plan)
