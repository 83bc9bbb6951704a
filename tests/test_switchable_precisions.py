"""Every precision runs on inputs of every kind; mistakes in plans are refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from attached import uniform
from torch import Tensor, nn

from wattbit.errors import ModelError, PlanError, PrecisionError
from wattbit.execution.switchable import REFERENCE, SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS, precision

# --- what it offers ---------------------------------------------------------------------------------------


def test_the_reference_is_always_on_offer_and_first(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8", "fp32"]) as switchable:
        assert [p.name for p in switchable.precisions] == ["fp32", "int8"]
        assert switchable.layer_names == ("stem", "depthwise", "pointwise", "head")
        assert [shape.name for shape in switchable.shapes] == list(switchable.layer_names)
        assert set(switchable.reference_plan.values()) == {REFERENCE}
        assert switchable.active_plan == switchable.reference_plan
        assert switchable.native_kernel(0, REFERENCE) == "torch"
        assert switchable.folds_batch_norm == (True, True, False, False)


def test_one_precision_may_be_given_as_a_text(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], "int8") as switchable:
        assert [p.name for p in switchable.precisions] == ["fp32", "int8"]


def test_emulation_can_be_asked_for(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"], native=False) as switchable:
        switchable.calibrate([conv_inputs])
        assert switchable.native_kernel(0, "int8") is None
        kernels = switchable.prepare(uniform(switchable, "int8"))
        assert [kernel is not None and kernel.native for kernel in kernels] == [None] * 4


def test_every_precision_runs_and_the_wider_ones_stay_close(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    expected = conv_model(conv_inputs).detach()
    with SwitchableModel(conv_model, conv_inputs[:2], PRECISIONS) as switchable:
        switchable.calibrate([conv_inputs])
        for name in PRECISIONS:
            output = switchable.run(conv_inputs, uniform(switchable, name)).detach()
            error = float((output - expected).norm() / expected.norm())
            assert error < {"fp32": 1e-9, "tf32": 0.01, "bf16": 0.02, "fp16": 0.01, "int8": 0.05}.get(
                name, 2.0
            )


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize(
    ("make", "inputs"), [(tiny.conv_model, tiny.images), (tiny.linear_model, tiny.tokens)]
)
def test_batches_of_one_sample_and_of_none_run_at_every_precision(name: str, make: Any, inputs: Any) -> None:
    x = inputs(8)
    with SwitchableModel(make(), x[:2], [name] if name != REFERENCE else []) as switchable:
        switchable.calibrate([x])
        plan = uniform(switchable, name)
        whole = switchable.run(x, plan)
        torch.testing.assert_close(switchable.run(x[:1], plan), whole[:1], atol=1e-4, rtol=1e-4)
        assert switchable.run(x[:0], plan).shape == (0, tiny.CLASSES)


def test_mistakes_in_plans_are_refused_before_anything_runs(switchable: SwitchableModel) -> None:
    with pytest.raises(PlanError, match="plan names layer 'tail'"):
        switchable.switch(PrecisionPlan({"tail": "int8"}))
    with pytest.raises(PlanError, match="plan leaves out layer"):
        switchable.prepare(PrecisionPlan({"head": "int8"}))
    with pytest.raises(
        PrecisionError, match="precision 'int2' is not on offer for this model; it has fp32, bf16"
    ):
        switchable.switch(uniform(switchable, "int2"))
    assert switchable.active_plan == switchable.reference_plan


def test_a_model_that_is_not_calibrated_says_so(conv_model: tiny.ConvNet, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]) as switchable:
        assert switchable.calibration == {}
        with pytest.raises(ModelError, match="the model is not calibrated: call calibrate"):
            switchable.switch(uniform(switchable, "int8"))


# --- models of other shapes -------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Takes two tensors and a flag, by position or by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor, double: bool = False) -> dict[str, Tensor]:
        z = self.left(input=x) + self.right(y)
        return {"logits": self.head(z * 2 if double else z)}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_models_with_several_inputs_switch_too(form: str) -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    inputs: Any = (x, y, True) if form == "tuple" else {"y": y, "x": x, "double": True}
    model = TwoInputs().eval()
    expected = model(x, y, True)["logits"]
    with SwitchableModel(model, inputs, ["int8"]) as switchable:
        switchable.calibrate([inputs])
        assert torch.equal(switchable.run(inputs)["logits"], expected)
        found = switchable.logits([inputs], uniform(switchable, "int8"))
        torch.testing.assert_close(found, expected.detach(), atol=0.1, rtol=0.1)


def test_images_without_a_batch_axis_run_like_batches_of_one(conv_inputs: Tensor) -> None:
    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.second(self.first(one)).mean((1, 2)) for one in x])

    class Batched(OneByOne):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y.mean((2, 3))

    single, batched = OneByOne().eval(), Batched().eval()
    batched.load_state_dict(single.state_dict())
    x = conv_inputs[:4]
    with (
        SwitchableModel(single, x, PRECISIONS) as one,
        SwitchableModel(batched, x, PRECISIONS) as many,
    ):
        many.calibrate([x])
        one.load_calibration(many.calibration)
        for name in PRECISIONS:
            found, expected = one.run(x, uniform(one, name)), many.run(x, uniform(many, name))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=name)


def test_inputs_that_require_gradients_run_at_every_precision(switchable: SwitchableModel) -> None:
    x = tiny.images(2).requires_grad_()
    for name in tiny.PRECISIONS:
        assert torch.isfinite(switchable.run(x, uniform(switchable, name))).all()
    output = switchable.run(x, switchable.reference_plan)
    output.sum().backward()
    assert x.grad is not None


def test_a_model_attached_in_inference_mode_runs_outside_of_it(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    with torch.inference_mode():
        switchable = SwitchableModel(conv_model, conv_inputs[:2], PRECISIONS)
        switchable.calibrate([conv_inputs])
        expected = {name: switchable.run(conv_inputs, uniform(switchable, name)) for name in PRECISIONS}
    with switchable:
        for name in PRECISIONS:
            output = switchable.run(conv_inputs.clone().requires_grad_(), uniform(switchable, name))
            torch.testing.assert_close(output.detach(), expected[name].clone(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "inputs"), [(tiny.conv_model, tiny.images), (tiny.linear_model, tiny.tokens)]
)
def test_kernels_keep_their_arithmetic_under_autocast(make: Any, inputs: Any) -> None:
    x = inputs(16)
    with SwitchableModel(make(), x[:2], PRECISIONS) as switchable, torch.inference_mode():
        switchable.calibrate([x])
        for name in list(PRECISIONS)[1:]:
            plan = uniform(switchable, name)
            expected = switchable.run(x, plan)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = switchable.run(x, plan)
            # What lies between the layers may run in bf16, and what it shifts may cross a rounding step.
            steps = 0.05 if precision(name).weight_bits >= 8 else 0.5
            assert float((found - expected).norm() / expected.norm()) < steps, name
            assert found.dtype == torch.float32
