"""Weights are packed once, when they are used, and freed with the model."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny
from attached import uniform
from torch import Tensor

from wattbit.execution import kernels, packing
from wattbit.execution.kernels import PackedKernel
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan


@pytest.fixture
def all_came() -> threading.Event:
    """What packing waits for."""
    came = threading.Event()
    came.set()
    return came


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, all_came: threading.Event) -> list[str]:
    """The precisions packed so far, one entry each time."""
    names: list[str] = []

    def pack(layer: Any, wanted: Any, calibration: Any, *, native: bool) -> PackedKernel:
        names.append(wanted.name)
        assert all_came.wait(20)
        return kernels.pack(layer, wanted, calibration, native=native)

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


def test_threads_that_come_together_pack_once(
    packed: list[str], all_came: threading.Event, switchable: SwitchableModel
) -> None:
    plans = [uniform(switchable, "int8"), uniform(switchable, "int4")]
    barrier, coming = threading.Barrier(8), []
    all_came.clear()

    def prepare(index: int) -> Any:
        barrier.wait(20)
        coming.append(index)
        if len(coming) == 8:
            all_came.set()
        return switchable.prepare(plans[index % 2])

    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(prepare, range(8)))
    assert sorted(packed) == ["int4"] * 4 + ["int8"] * 4
    assert all(one is kernels[index % 2] or one == kernels[index % 2] for index, one in enumerate(kernels))


def live_plans() -> int:
    """How many plans anybody holds on to."""
    gc.collect()
    return sum(type(thing) is PrecisionPlan for thing in gc.get_objects())


def test_thousands_of_plans_do_not_pile_up(packed: list[str], switchable: SwitchableModel) -> None:
    others = live_plans()
    names = ("fp32", "bf16", "int8", "int4", "mxfp4")
    for a in names:
        for b in names:
            for c in names:
                for d in names:
                    plan = dict(zip(switchable.layer_names, (a, b, c, d), strict=True))
                    switchable.prepare(PrecisionPlan(plan))
    assert 0 < live_plans() - others <= 256
    assert len(packed) == 4 * 4


def test_detaching_frees_what_was_packed_and_the_model_holds_on_to_nothing(
    conv_model: tiny.ConvNet, conv_inputs: Tensor
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
