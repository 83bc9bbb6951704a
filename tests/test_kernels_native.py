"""Native kernels agree with emulated ones, and are taken only where the device has them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from convolution_cases import GEOMETRIES, INT8, calibrated, convolution, convolutions, random, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.execution.kernels import LayerWeights, cpu, find_native, pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.execution.kernels.registry import NATIVE_KERNELS
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS, precision
from workloads import digits

# On a machine without a native kernel these compare emulation with itself, which must hold as well.
NATIVE = cpu.has_vnni()


def emulated_anywhere(layer: LayerWeights) -> bool:
    """One channel a group, with a stride along rows only."""
    return layer.is_conv and layer.weight.shape[1] == 1 and layer.stride[0] == 1 < layer.stride[1]


def native_and_emulated(layer: LayerWeights, x: Tensor) -> tuple[Tensor, Tensor]:
    calibration = calibrated(x)
    found = pack(layer, INT8, calibration, native=True)
    assert (found.native is not None) == (NATIVE and not emulated_anywhere(layer))
    return found.run(x), pack(layer, INT8, calibration, native=False).run(x)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_native_int8_convolutions_agree_with_emulated_ones(geometry: str) -> None:
    native, expected = native_and_emulated(convolution(**GEOMETRIES[geometry]), random(3, 64, 9, 9))
    assert native.shape == expected.shape
    assert relative_error(native, expected) < 1e-5


@given(convolutions())
@settings(deadline=None, max_examples=40)
def test_native_int8_convolutions_agree_for_any_geometry(case: tuple[LayerWeights, Tensor]) -> None:
    native, expected = native_and_emulated(*case)
    torch.testing.assert_close(native, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("channels", "size", "geometry"),
    [
        # (in, out), (height, width); oneDNN computes nonsense for the first five and crashes on the last two.
        ((1, 1), (6, 6), {"kernel": (2, 1), "padding": (2, 0)}),
        ((2, 8), (10, 1), {"kernel": (5, 2), "stride": (2, 1), "padding": (1, 1), "dilation": 2}),
        ((3, 24), (12, 7), {"kernel": (3, 5), "stride": (1, 3), "padding": (1, 0), "groups": 3}),
        ((1, 16), (8, 2), {"kernel": 5, "stride": (1, 2), "padding": (0, 2)}),
        ((3, 48), (5, 5), {"kernel": 5, "stride": (1, 3), "padding": (2, 1), "groups": 3}),
        ((2, 6), (3, 1), {"kernel": 2, "stride": 2, "padding": 3, "dilation": 2, "groups": 2}),
        ((16, 64), (7, 1), {"kernel": (3, 1), "stride": 2, "padding": 3, "dilation": 3, "groups": 8}),
    ],
)
def test_geometries_that_onednn_gets_wrong_are_kept_from_it(
    channels: tuple[int, int], size: tuple[int, int], geometry: dict[str, Any]
) -> None:
    layer, x = convolution(*channels, **geometry), random(2, channels[0], *size)
    found, expected = native_and_emulated(layer, x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 5, 24), (2, 3, 4, 24)])
def test_native_int8_linear_layers_agree_for_any_shape_of_input(shape: tuple[int, ...], bias: bool) -> None:
    native, expected = native_and_emulated(take_weights(nn.Linear(24, 10, bias=bias)), random(*shape))
    assert native.shape == expected.shape
    assert relative_error(native, expected) < 1e-5


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_native_int8_agrees_at_any_scale_and_for_one_sided_inputs(spread: float) -> None:
    layer = take_weights(nn.Linear(24, 10))
    for x in (random(9, 24) * spread, random(9, 24).abs() * spread, -random(9, 24).abs() * spread):
        native, expected = native_and_emulated(layer, x)
        assert relative_error(native, expected) < 1e-4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_native_int8_treats_what_is_not_finite_as_emulation_does(bad: float) -> None:
    for layer, x in ((take_weights(nn.Linear(24, 10)), random(5, 24)), (convolution(), random(2, 64, 5, 5))):
        calibration = calibrated(x)
        x.view(-1)[3] = bad
        native = pack(layer, INT8, calibration, native=True).run(x)
        expected = pack(layer, INT8, calibration, native=False).run(x)
        torch.testing.assert_close(native, expected, equal_nan=True, atol=1e-4, rtol=1e-4)


def test_native_int8_saturates_where_emulation_does() -> None:
    layer, x = convolution(), random(2, 64, 5, 5)
    calibration = calibrated(x)
    native = pack(layer, INT8, calibration, native=True).run(x * 100)
    expected = pack(layer, INT8, calibration, native=False).run(x * 100)
    assert relative_error(native, expected) < 1e-5


def test_no_token_is_too_large_for_an_int8_linear_layer_or_costs_the_others_precision() -> None:
    layer, x = take_weights(nn.Linear(24, 10, bias=False)), random(5, 24)
    kernel = pack(layer, INT8, calibrated(x), native=True)
    expected = kernel.run(x)
    x[2] *= 1e4
    found = kernel.run(x)
    assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    assert relative_error(found, layer.apply(x, layer.weight)) < 0.02


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 300), st.booleans())
@settings(deadline=None, max_examples=40)
def test_native_int8_linear_layers_give_bit_for_bit_what_emulated_ones_give(
    seed: int, tokens: int, width: int, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = take_weights(nn.Linear(width, 9, bias=bias))
    native, expected = native_and_emulated(layer, torch.randn(tokens, width, generator=generator) * 3)
    assert torch.equal(native, expected)


def test_native_int8_predicts_what_emulated_int8_predicts_on_a_real_model(tmp_path: Path) -> None:
    workload = digits.load(0, 256, 400, 541, 200, epochs=5, cache_dir=str(tmp_path), batch_size=64)
    images, labels = digits.read_digits()
    logits = {}
    for native in (True, False):
        with SwitchableModel(workload.model, images[:2], ["int8"], native=native) as model:
            model.calibrate([workload.splits["calibrate"].inputs])
            plan = PrecisionPlan.uniform(model.layer_names, "int8")
            logits[native] = model.logits([images], plan)
            reference = model.logits([images])
    accuracy = float((reference.argmax(1) == labels).double().mean())
    assert accuracy > 0.85, "the model is to be a real one"
    agreement = float((logits[True].argmax(1) == logits[False].argmax(1)).double().mean())
    assert agreement >= 0.999
    # Activations that fall on the other side of a rounding step; int8 itself is 100 times as far off.
    assert relative_error(logits[True], logits[False]) < 2e-3
    assert 1e-3 < relative_error(logits[False], reference) < 0.2


def test_without_vnni_int8_runs_emulated_and_says_so(
    monkeypatch: pytest.MonkeyPatch, conv_model: tiny.ConvNet, conv_inputs: Tensor
) -> None:
    monkeypatch.setattr(cpu, "has_vnni", lambda: False)
    layer = take_weights(nn.Linear(24, 10))
    assert find_native(layer, INT8) is None
    assert pack(layer, INT8, calibrated(random(5, 24)), native=True).native is None
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"]) as model:
        model.calibrate([conv_inputs])
        plan = PrecisionPlan.uniform(model.layer_names, "int8")
        assert [model.native_kernel(index, "int8") for index in range(4)] == [None] * 4
        assert [kernel is not None and kernel.native for kernel in model.prepare(plan)] == [None] * 4
        assert model.native_kernel(0, "fp32") == "torch"
        found = model.run(conv_inputs, plan)
    with SwitchableModel(conv_model, conv_inputs[:2], ["int8"], native=False) as model:
        model.calibrate([conv_inputs])
        assert torch.equal(model.run(conv_inputs, plan), found)


def test_with_vnni_int8_runs_natively_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_vnni", lambda: True)
    kernel = find_native(take_weights(nn.Linear(24, 10)), INT8)
    assert kernel is not None
    assert kernel.name == "onednn int8"


def test_vnni_is_read_from_the_processor_s_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (flags, expected) in enumerate(
        [("avx512f avx512_vnni", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False), (None, False)]
    ):
        path = tmp_path / f"cpuinfo{number}"
        if flags is not None:
            path.write_text(f"flags : {flags}\n", encoding="utf-8")
        monkeypatch.setattr(cpu, "Path", lambda _, path=path: path)
        assert cpu.has_vnni.__wrapped__() is expected


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != "int8"])
def test_nothing_else_claims_to_run_natively_on_a_cpu(name: str) -> None:
    assert find_native(take_weights(nn.Linear(24, 10)), precision(name)) is None


def test_a_layer_on_another_device_is_not_given_to_the_cpu() -> None:
    layer = LayerWeights(torch.empty(10, 24, device="meta"), None)
    assert all(not kernel.supports(layer.weight.device, layer, INT8) for kernel in NATIVE_KERNELS)


def test_the_geometries_cover_both_ways_of_blocking() -> None:
    sizes = [16, 32]
    covered = {
        (convolution(**geometry).weight.shape[1] % size == 0)
        for geometry, size in itertools.product(GEOMETRIES.values(), sizes)
    }
    assert covered == {True, False}
