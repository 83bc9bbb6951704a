"""While a model is attached, its plans are for the weights it was attached with, and have no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import runtimes
import tiny
import torch
from attached import uniform
from torch import Tensor, nn

from wattbit.errors import BundleError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime

CHANGED = "weights have changed since it was attached"


def load(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assign(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def write_in_place(model: Any) -> None:
    with torch.no_grad():
        model.head.weight[0, 0] += 1.0


def write_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.head.weight[0, 0] += 1.0


def write_through_data(model: Any) -> None:
    model.head.weight.data.mul_(2.0)


def replace_data(model: Any) -> None:
    model.head.weight.data = model.head.weight.data * 2.0


def replace_parameter(model: Any) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach() * 2.0)


def replace_layer(model: Any) -> None:
    model.head = nn.Linear(16, tiny.CLASSES)


def move_statistics(model: Any) -> None:
    model.stem_bn.running_mean.add_(1.0)


def step(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1).step()


CHANGES = [
    load, assign, write_in_place, write_in_inference_mode, write_through_data, replace_data,
    replace_parameter, replace_layer, move_statistics, step,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_is_not_run_on_other_weights(
    switchable: SwitchableModel, change: Callable[[Any], None]
) -> None:
    x = tiny.images(8)
    plan = uniform(switchable, "int8")
    switchable.switch(plan)
    switchable.run(x)
    change(switchable.model)
    with pytest.raises(ModelError, match=CHANGED):
        switchable.run(x)
    with pytest.raises(ModelError, match=CHANGED):
        switchable.model(x)
    with pytest.raises(ModelError, match=CHANGED):
        switchable.holding(switchable.prepare(plan))
    found = switchable.run(x, switchable.reference_plan)
    switchable.detach()
    assert torch.equal(found, switchable.model(x))


@pytest.mark.parametrize("change", [*CHANGES, lambda model: model.double()])
@torch.no_grad()
def test_the_runtime_answers_with_the_new_weights_and_rolls_back(change: Callable[[Any], None]) -> None:
    x, model = runtimes.X[:8], tiny.conv_model()
    controller = PrecisionController(tiny.bundle())
    with PrecisionRuntime(controller, model, tolerance_pp=10.0) as runtime:
        runtime(x)
        assert runtime.plan != controller.reference_plan
        change(model)
        x = x.to(next(model.parameters()).dtype)
        answers = [runtime(x) for _ in range(2)]
        assert runtime.plan == controller.reference_plan
        assert runtime.stats.rollbacks == 1
    assert all(torch.equal(answer, model(x)) for answer in answers)


@pytest.mark.parametrize("change", [load, write_through_data, move_statistics])
def test_weights_loaded_before_the_first_batch_are_refused(change: Callable[[Any], None]) -> None:
    model = tiny.conv_model()
    with PrecisionRuntime(PrecisionController(tiny.bundle()), model, tolerance_pp=10.0) as runtime:
        change(model)
        with pytest.raises(BundleError, match="the model has fingerprint"):
            runtime(runtimes.X[:8])


class Counting(nn.Module):
    """Counts its own calls in a buffer, and keeps a cache beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        self.cache = x.detach().clone()
        y: Tensor = self.layer(x)
        return y


def test_what_the_forward_pass_writes_itself_is_no_change() -> None:
    x = torch.randn(3, 4)
    with SwitchableModel(Counting(), x, ["int8"]) as switchable:
        switchable.calibrate([x])
        for _ in range(3):
            switchable.run(x, uniform(switchable, "int8"))
        switchable.model.get_parameter("layer.weight").data.add_(1.0)
        with pytest.raises(ModelError, match=CHANGED):
            switchable.run(x, uniform(switchable, "int8"))


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in tiny.PRECISIONS if n != "fp32"])
@pytest.mark.parametrize("frozen", [False, True])
def test_no_gradient_passes_a_layer_at_a_low_precision(
    switchable: SwitchableModel, name: str, frozen: bool
) -> None:
    switchable.model.requires_grad_(not frozen)
    x = tiny.images(4).requires_grad_()
    for plan in (
        uniform(switchable, name),
        *(switchable.reference_plan.replace(**{layer: name}) for layer in switchable.layer_names),
    ):
        with pytest.raises(ModelError, match="has no gradient"):
            torch.autograd.backward(switchable.run(x, plan).sum())
        assert x.grad is None


def test_gradients_at_the_reference_are_the_models_own(switchable: SwitchableModel) -> None:
    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = tiny.images(4).requires_grad_()
        torch.autograd.backward(run(x).square().sum())
        assert x.grad is not None
        found = [x.grad, *(p.grad.clone() for p in switchable.model.parameters() if p.grad is not None)]
        switchable.model.zero_grad()
        return found

    found = gradients(lambda x: switchable.run(x, switchable.reference_plan))
    switchable.detach()
    assert all(map(torch.equal, found, gradients(switchable.model)))


def test_layers_after_the_last_low_precision_one_can_be_trained(switchable: SwitchableModel) -> None:
    plan = switchable.reference_plan.replace(stem="int8")
    loss = switchable.run(tiny.images(4), plan).sum()
    (found,) = torch.autograd.grad(loss, [switchable.model.get_parameter("head.bias")])
    assert torch.equal(found, torch.full_like(found, 4.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
def test_forward_mode_gradients_are_refused(switchable: SwitchableModel) -> None:
    x = tiny.images(4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))  # type: ignore[no-untyped-call]
        with pytest.raises(ModelError, match="has no gradient"):
            switchable.run(dual, uniform(switchable, "int8"))
