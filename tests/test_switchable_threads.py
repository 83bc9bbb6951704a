"""Switches are atomic under real threads; detaching waits for the batches in flight."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from attached import uniform, unpatched
from torch import Tensor, nn

from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan

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
            out: Tensor = self.second(y)
            return out

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


class Stepwise(nn.Module):
    """Calls ``between`` between its layers, so that things happen while a batch is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.conv_model()
        self.between: Callable[[], object] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        y = net.stem(x)
        self.between()
        y = torch.relu(net.stem_bn(y))
        self.between()
        y = net.depthwise(y)
        self.between()
        y = torch.relu(net.depthwise_bn(y))
        y = torch.relu(net.pointwise(y))
        self.between()
        logits: Tensor = net.head(y.mean((2, 3)))
        return logits


@pytest.fixture
def stepwise() -> Stepwise:
    return Stepwise().eval()


@pytest.fixture
def slow(stepwise: Stepwise) -> Iterator[SwitchableModel]:
    x = tiny.images(4)
    with SwitchableModel(stepwise, x, ["int8", "int4"]) as switchable:
        switchable.calibrate([x])
        yield switchable


@pytest.mark.parametrize("way", ["run", "direct call"])
def test_a_batch_never_mixes_two_plans_whatever_other_threads_switch_to(
    stepwise: Stepwise, slow: SwitchableModel, way: str
) -> None:
    x = tiny.images(4)
    plans = [uniform(slow, name) for name in ("fp32", "int8", "int4")]
    with torch.inference_mode():
        expected = [slow.run(x, plan) for plan in plans]
    next_plan = itertools.cycle(plans)

    def serve(_: int) -> list[Tensor]:
        with torch.inference_mode():
            return [slow.run(x) if way == "run" else slow.model(x) for _ in range(25)]

    with ThreadPoolExecutor(1) as switching, ThreadPoolExecutor(4) as serving:
        stepwise.between = lambda: switching.submit(slow.switch, next(next_plan)).result(20)
        outputs = [output for served in serving.map(serve, range(4)) for output in served]
    matches = [[torch.equal(output, one) for one in expected] for output in outputs]
    assert all(any(match) for match in matches), "a batch ran under a mixture of plans"
    assert all(any(match[index] for match in matches) for index in range(3)), "not every plan ran"


def test_plans_for_single_batches_do_not_meet_in_other_threads(
    stepwise: Stepwise, slow: SwitchableModel
) -> None:
    x = tiny.images(4)
    plans = [uniform(slow, name) for name in ("fp32", "int8", "int4")]
    with torch.inference_mode():
        expected = [slow.run(x, plan) for plan in plans]

    def shadow(index: int) -> bool:
        with torch.inference_mode():
            return torch.equal(slow.run(x, plans[index % 3]), expected[index % 3])

    together = threading.Barrier(6)
    stepwise.between = lambda: together.wait(20)
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(shadow, range(36)))


def test_a_part_called_by_itself_follows_the_active_plan(switchable: SwitchableModel) -> None:
    head, x = switchable.model.get_submodule("head"), torch.randn(3, 16)
    expected = switchable.layer_callable(3, "int4")(x)
    switchable.switch(uniform(switchable, "int4"))
    assert torch.equal(head(x), expected)


# --- detaching with batches under way ---------------------------------------------------------------------


def test_detaching_waits_for_the_batches_in_flight(stepwise: Stepwise, slow: SwitchableModel) -> None:
    x = tiny.images(4)
    slow.switch(uniform(slow, "int8"))
    with torch.inference_mode():
        reference, quantized = slow.run(x, slow.reference_plan), slow.run(x)
    outputs: list[Tensor] = []
    refused = []
    in_flight, detached, this_thread = threading.Barrier(5), threading.Event(), threading.local()

    def meet() -> None:
        """Wait in the middle of a thread's first batch until all threads have begun one."""
        if not hasattr(this_thread, "has_met"):
            this_thread.has_met = True
            in_flight.wait(20)

    def serve() -> None:
        try:
            while True:
                with torch.inference_mode():
                    outputs.append(slow.run(x))
        except ModelError as error:
            refused.append(str(error))

    def serve_directly() -> None:
        for index in range(12):
            if index == 6:
                assert detached.wait(20)
            with torch.inference_mode():
                outputs.append(slow.model(x))

    stepwise.between = meet
    threads = [threading.Thread(target=target) for target in (serve, serve, serve_directly, serve_directly)]
    for thread in threads:
        thread.start()
    in_flight.wait(20)
    slow.detach()
    for thread in threads[:2]:
        thread.join(20.0)
    detached.set()
    for thread in threads[2:]:
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
    linear_model: tiny.TokenNet, linear_inputs: Tensor
) -> None:
    with SwitchableModel(linear_model, linear_inputs[:2], ["int8"]) as switchable:
        handle = linear_model.norm.register_forward_hook(lambda *_: switchable.detach())
        with pytest.raises(ModelError, match="cannot be detached from inside a batch"):
            switchable.run(linear_inputs)
        handle.remove()
        assert switchable.run(linear_inputs).shape == (64, 5)
    assert unpatched(linear_model)
