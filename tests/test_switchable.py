"""Switchable models: the reference bit for bit, atomic switches under real threads, and a way back."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from wattbit.errors import DataError, ModelError, PlanError, PrecisionError
from wattbit.execution import packing
from wattbit.execution.kernels import PackedKernel
from wattbit.execution.packing import PackedLayers
from wattbit.execution.switchable import REFERENCE, SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS, precision


def uniform(model: SwitchableModel, name: str) -> PrecisionPlan:
    return PrecisionPlan.uniform(model.layer_names, name)


def unpatched(model: nn.Module) -> bool:
    return all("forward" not in module.__dict__ for module in model.modules())


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


def test_training_flags_are_given_back_as_they_were(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    conv_model.train()
    conv_model.stem_bn.eval()
    flags = {name: module.training for name, module in conv_model.named_modules()}
    switchable = SwitchableModel(conv_model, conv_inputs[:2], ["int8"])
    assert not any(module.training for module in conv_model.modules())
    switchable.detach()
    assert {name: module.training for name, module in conv_model.named_modules()} == flags


def test_a_model_in_training_mode_runs_without_dropout_while_attached(
    conv_model: nn.Module, conv_inputs: Tensor
) -> None:
    expected = conv_model(conv_inputs)
    statistics = conv_model.stem_bn.running_mean.clone()
    with SwitchableModel(conv_model.train(), conv_inputs[:2], ["int8"]):
        assert torch.equal(conv_model(conv_inputs), expected)
    assert torch.equal(conv_model.stem_bn.running_mean, statistics)


def test_detaching_twice_does_nothing_more(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    switchable = SwitchableModel(conv_model, conv_inputs[:2], ["int8"])
    switchable.detach()
    conv_model.train()
    switchable.detach()
    assert conv_model.training


def test_a_forward_that_was_replaced_before_is_given_back(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    calls = []
    layer = conv_model.head
    own = layer.forward

    def wrapped(input: Tensor) -> Tensor:  # noqa: A002
        calls.append(len(input))
        return own(input)

    layer.forward = wrapped
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]):
        calls.clear()
        conv_model(conv_inputs)
        assert calls == [64]
    assert layer.__dict__["forward"] is wrapped


def test_a_body_that_fails_still_gives_the_model_back(conv_model: nn.Module, conv_inputs: Tensor) -> None:
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
        y = self.layer(x)
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


def test_a_refused_model_keeps_its_mode(linear_model: nn.Module, linear_inputs: Tensor) -> None:
    linear_model.double().train()
    with pytest.raises(ModelError, match="float64"):
        SwitchableModel(linear_model, linear_inputs[:2].double(), ["int8"])
    assert linear_model.training


def test_nan_weights_are_refused_by_name(conv_model: nn.Module, conv_inputs: Tensor) -> None:
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


def test_an_unknown_precision_is_refused_before_the_model_is_touched(conv_model, conv_inputs: Tensor) -> None:
    with pytest.raises(PrecisionError, match="unknown precision 'int9'"):
        SwitchableModel(conv_model.train(), conv_inputs[:2], ["int9"])
    assert conv_model.training


# --- what it offers ---------------------------------------------------------------------------------------


def test_the_reference_is_always_on_offer_and_first(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8", "fp32"]) as switchable:
        assert [p.name for p in switchable.precisions] == ["fp32", "int8"]
        assert switchable.layer_names == ("stem", "depthwise", "pointwise", "head")
        assert [shape.name for shape in switchable.shapes] == list(switchable.layer_names)
        assert set(switchable.reference_plan.values()) == {REFERENCE}
        assert switchable.active_plan == switchable.reference_plan
        assert switchable.native_kernel(0, REFERENCE) == "torch"
        assert switchable.folds_batch_norm == (True, True, False, False)


def test_one_precision_may_be_given_as_a_text(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], "int8") as switchable:
        assert [p.name for p in switchable.precisions] == ["fp32", "int8"]


def test_emulation_can_be_asked_for(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"], native=False) as switchable:
        switchable.calibrate([conv_inputs])
        assert switchable.native_kernel(0, "int8") is None
        kernels = switchable.prepare(uniform(switchable, "int8"))
        assert [kernel.native for kernel in kernels] == [None] * 4


def test_every_precision_runs_and_the_wider_ones_stay_close(
    conv_model: nn.Module, conv_inputs: Tensor
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


def test_a_model_that_is_not_calibrated_says_so(conv_model: nn.Module, conv_inputs: Tensor) -> None:
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]) as switchable:
        assert switchable.calibration == {}
        with pytest.raises(ModelError, match="the model is not calibrated: call calibrate"):
            switchable.switch(uniform(switchable, "int8"))


# --- switching --------------------------------------------------------------------------------------------


def test_a_plan_given_for_one_batch_does_not_change_the_active_plan(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    active = uniform(switchable, "int8")
    switchable.switch(active)
    expected = switchable.run(conv_inputs)
    other = switchable.run(conv_inputs, uniform(switchable, "int4"))
    assert not torch.equal(other, expected)
    assert switchable.active_plan == active
    assert torch.equal(switchable.run(conv_inputs), expected)
    assert torch.equal(switchable.model(conv_inputs), expected)


def test_the_order_of_layers_in_a_plan_does_not_matter(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    plan = PrecisionPlan({"head": "int4", "stem": "int8", "pointwise": "fp32", "depthwise": "mxfp4"})
    ordered = plan.require_layers(switchable.layer_names)
    kernels = switchable.prepare(ordered)
    assert switchable.prepare(plan) == kernels
    assert [kernel is None for kernel in kernels] == [False, False, True, False]


def test_a_batch_inside_a_batch_leaves_the_outer_one_its_plan(conv_inputs: Tensor) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.inner: Callable[[], None] = lambda: None

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            self.inner()
            return self.second(y)

    x = torch.randn(4, 8)
    model = Nested().eval()
    with SwitchableModel(model, x, ["int2"]) as switchable:
        switchable.calibrate([x])
        expected = switchable.run(x, uniform(switchable, "int2"))

        def inner() -> None:
            model.inner = lambda: None
            switchable.run(x, switchable.reference_plan)

        model.inner = inner
        assert torch.equal(switchable.run(x, uniform(switchable, "int2")), expected)


class Slow(nn.Module):
    """Sleeps between its layers, so that switches happen while a batch is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.conv_model()

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        y = net.stem(x)
        time.sleep(1e-3)
        y = torch.relu(net.stem_bn(y))
        time.sleep(1e-3)
        y = net.depthwise(y)
        time.sleep(1e-3)
        y = torch.relu(net.depthwise_bn(y))
        y = torch.relu(net.pointwise(y))
        time.sleep(1e-3)
        return net.head(y.mean((2, 3)))


@pytest.fixture
def slow() -> Iterator[SwitchableModel]:
    x = tiny.images(4)
    with SwitchableModel(Slow().eval(), x, ["int8", "int4"]) as switchable:
        switchable.calibrate([x])
        yield switchable


@pytest.mark.parametrize("way", ["run", "direct call"])
def test_a_batch_never_mixes_two_plans_whatever_other_threads_switch_to(
    slow: SwitchableModel, way: str
) -> None:
    x = tiny.images(4)
    plans = [uniform(slow, name) for name in ("fp32", "int8", "int4")]
    with torch.inference_mode():
        expected = [slow.run(x, plan) for plan in plans]
    done = threading.Event()
    outputs: list[Tensor] = []

    def serve() -> None:
        with torch.inference_mode():
            while not done.is_set():
                outputs.append(slow.run(x) if way == "run" else slow.model(x))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20.0
    switches = 0
    while len(outputs) < 100 and time.monotonic() < deadline:
        slow.switch(plans[switches % 3])
        switches += 1
        time.sleep(3e-4)
    done.set()
    for thread in threads:
        thread.join()
    matches = [[torch.equal(output, one) for one in expected] for output in outputs]
    assert all(any(match) for match in matches), "a batch ran under a mixture of plans"
    assert all(any(match[index] for match in matches) for index in range(3)), "not every plan ran"


def test_plans_for_single_batches_do_not_meet_in_other_threads(slow: SwitchableModel) -> None:
    x = tiny.images(4)
    plans = [uniform(slow, name) for name in ("fp32", "int8", "int4")]
    with torch.inference_mode():
        expected = [slow.run(x, plan) for plan in plans]

    def shadow(index: int) -> bool:
        with torch.inference_mode():
            return torch.equal(slow.run(x, plans[index % 3]), expected[index % 3])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(shadow, range(36)))


def test_a_part_called_by_itself_follows_the_active_plan(switchable: SwitchableModel) -> None:
    head, x = switchable.model.head, torch.randn(3, 16)
    expected = switchable.layer_callable(3, "int4")(x)
    switchable.switch(uniform(switchable, "int4"))
    assert torch.equal(head(x), expected)


# --- detaching with batches under way ---------------------------------------------------------------------


def test_detaching_waits_for_the_batches_under_way(slow: SwitchableModel) -> None:
    x = tiny.images(4)
    slow.switch(uniform(slow, "int8"))
    with torch.inference_mode():
        reference, quantized = slow.run(x, slow.reference_plan), slow.run(x)
    outputs: list[Tensor] = []
    refused = []

    def serve() -> None:
        try:
            while True:
                with torch.inference_mode():
                    outputs.append(slow.run(x))
        except ModelError as error:
            refused.append(str(error))

    def serve_directly() -> None:
        for _ in range(12):
            with torch.inference_mode():
                outputs.append(slow.model(x))

    threads = [threading.Thread(target=target) for target in (serve, serve, serve_directly, serve_directly)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    slow.detach()
    for thread in threads:
        thread.join(20.0)
    assert refused == ["the model is detached and runs no plan any more; attach it again"] * 2
    assert all(torch.equal(output, quantized) or torch.equal(output, reference) for output in outputs)
    assert torch.equal(outputs[-1], reference)
    assert unpatched(slow.model)


def test_a_detached_model_does_not_pretend_to_run_a_plan(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    switchable.detach()
    with pytest.raises(ModelError, match="detached and runs no plan"):
        switchable.run(conv_inputs, uniform(switchable, "int8"))
    with pytest.raises(ModelError, match="detached and runs no plan"):
        switchable.logits([conv_inputs])


def test_detaching_from_inside_a_batch_is_refused_instead_of_waiting_for_ever(
    linear_model: nn.Module, linear_inputs: Tensor
) -> None:
    with SwitchableModel(linear_model, linear_inputs[:2], ["int8"]) as switchable:
        handle = linear_model.norm.register_forward_hook(lambda *_: switchable.detach())
        with pytest.raises(ModelError, match="cannot be detached from inside a batch"):
            switchable.run(linear_inputs)
        handle.remove()
        assert switchable.run(linear_inputs).shape == (64, 5)
    assert unpatched(linear_model)


# --- copies -----------------------------------------------------------------------------------------------


def test_a_deep_copy_of_an_attached_model_is_an_ordinary_model(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    reference = switchable.run(conv_inputs, switchable.reference_plan)
    switchable.switch(uniform(switchable, "int4"))
    copied = copy.deepcopy(switchable.model)
    assert torch.equal(copied(conv_inputs), reference)
    # It runs its own weights, and switching the original does not reach it.
    copied.head.weight.data.zero_()
    assert torch.equal(copied(conv_inputs), copied.head.bias.expand(64, -1))
    assert switchable.model.head.weight.abs().sum() > 0
    with SwitchableModel(copy.deepcopy(copied), conv_inputs[:2], ["int8"]) as other:
        assert torch.equal(other.run(conv_inputs), copied(conv_inputs))


def test_a_deep_copy_keeps_a_forward_that_was_replaced_before(
    conv_model: nn.Module, conv_inputs: Tensor
) -> None:
    conv_model.head.forward = torch.zeros_like
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
    assert list(inspect.signature(switchable.model.head.forward).parameters) == ["input"]


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
            return self.second(self.first(x)).mean((2, 3))

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
    conv_model: nn.Module, conv_inputs: Tensor
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


# --- calibration ------------------------------------------------------------------------------------------


def test_calibration_sees_the_reference_whatever_plan_is_active(
    conv_model: nn.Module, conv_inputs: Tensor
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
            z = self.layer(y)
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


# --- packing ----------------------------------------------------------------------------------------------


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions packed so far, one entry each time."""
    names: list[str] = []
    original = packing.pack

    def pack(layer: Any, wanted: Any, calibration: Any, *, native: bool) -> PackedKernel:
        names.append(wanted.name)
        time.sleep(1e-3)
        return original(layer, wanted, calibration, native=native)

    monkeypatch.setattr(packing, "pack", pack)
    return names


def test_nothing_is_packed_before_it_is_used_or_twice(
    packed: list[str], switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    assert packed == []
    for _ in range(3):
        switchable.switch(uniform(switchable, "int8"))
        switchable.switch(switchable.reference_plan)
        switchable.run(conv_inputs, switchable.reference_plan.replace(head="int4"))
        switchable.layer_callable(3, "int4")
    assert packed == ["int8"] * 4 + ["int4"]


def test_threads_that_come_together_pack_once(packed: list[str], switchable: SwitchableModel) -> None:
    plans = [uniform(switchable, "int8"), uniform(switchable, "int4")]
    barrier = threading.Barrier(8)

    def prepare(index: int) -> Any:
        barrier.wait()
        return switchable.prepare(plans[index % 2])

    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(prepare, range(8)))
    assert sorted(packed) == ["int4"] * 4 + ["int8"] * 4
    assert all(one is kernels[index % 2] or one == kernels[index % 2] for index, one in enumerate(kernels))


def test_thousands_of_plans_do_not_pile_up(switchable: SwitchableModel) -> None:
    names = ("fp32", "bf16", "int8", "int4", "mxfp4")
    for a in names:
        for b in names:
            for c in names:
                for d in names:
                    plan = dict(zip(switchable.layer_names, (a, b, c, d), strict=True))
                    switchable.prepare(PrecisionPlan(plan))
    store: PackedLayers = switchable._packed
    assert len(store._plans) <= 256
    assert len(store._packed) == 4 * 4


def test_detaching_frees_what_was_packed_and_the_model_holds_on_to_nothing(
    conv_model: nn.Module, conv_inputs: Tensor
) -> None:
    switchable = SwitchableModel(conv_model, conv_inputs[:2], ["int8"])
    switchable.calibrate([conv_inputs])
    kernel = switchable.prepare(uniform(switchable, "int8"))[0]
    assert kernel is not None
    run = weakref.ref(kernel.run)
    attached = weakref.ref(switchable)
    del kernel
    switchable.detach()
    gc.collect()
    assert run() is None
    del switchable
    gc.collect()
    assert attached() is None
