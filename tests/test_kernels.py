"""Kernels: emulation exact for any geometry, and native execution that agrees with it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.calibration import ActivationObserver, LayerCalibration
from wattbit.execution.kernels import LayerWeights, cpu, emulated, find_native, pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.execution.kernels.registry import NATIVE_KERNELS
from wattbit.execution.switchable import SwitchableModel
from wattbit.numerics import (
    LEAST_TOKEN_BITS,
    dequantize_weight,
    fake_quantize,
    integer_weight_scale,
    nvfp4_tensor_scale,
    quantize_tokens,
    quantize_weight,
    round_float,
    round_mxfp4,
    round_nvfp4,
)
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS, precision
from workloads import digits

NATIVE = cpu.has_vnni()
INT8 = precision("int8")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def calibrated(x: Tensor) -> LayerCalibration:
    observer = ActivationObserver("layer")
    observer.observe(x)
    return observer.calibrate((2, 3, 4, 6, 8))


def emulate(layer: LayerWeights, name: str, x: Tensor) -> Tensor:
    return pack(layer, precision(name), calibrated(x), native=False).run(x)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[LayerWeights, Tensor]:
    """A convolution of any geometry, and an input."""
    torch.manual_seed(draw(st.integers(0, 9)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.sampled_from([1, 2, 16, 32]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    conv = nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        # PyTorch's own float convolution can crash where windows lie in the padding as a whole.
        padding=draw(st.tuples(*(st.integers(0, side - 1) for side in kernel))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    x = random(draw(st.integers(1, 3)), channels, draw(st.integers(6, 9)), draw(st.integers(6, 9)))
    return take_weights(conv), x


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": (2, 3)},
    "padded": {"padding": (2, 1)},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 64},
    "depthwise, two channels each": {"groups": 64, "out": 128, "stride": 2, "padding": 1},
    "pointwise": {"kernel": 1},
    "tall": {"kernel": (3, 1), "bias": False},
}


def convolution(channels: int = 64, out: int = 64, kernel: Any = 3, **geometry: Any) -> LayerWeights:
    return take_weights(nn.Conv2d(channels, out, kernel, **geometry))


# --- emulation --------------------------------------------------------------------------------------------


@given(convolutions())
@settings(deadline=None, max_examples=60)
def test_an_unfolded_convolution_is_the_convolution(case: tuple[LayerWeights, Tensor]) -> None:
    layer, x = case
    rows = layer.weight.permute(0, 2, 3, 1).flatten(1)
    unfolded = emulated._pack_unfolded(layer, rows, lambda columns: columns)
    torch.testing.assert_close(unfolded(x), layer.apply(x, layer.weight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("geometry", [key for key in GEOMETRIES if "depthwise" not in key])
def test_blocks_of_channels_give_what_unfolding_gives(name: str, geometry: str) -> None:
    layer, x = convolution(**GEOMETRIES[geometry]), random(2, 64, 9, 9)
    rows = layer.weight.permute(0, 2, 3, 1).flatten(1)
    if name == "mxfp4":
        unfolded = emulated._pack_unfolded(layer, round_mxfp4(rows), round_mxfp4)
    else:
        scale = nvfp4_tensor_scale(x.abs().max())
        unfolded = emulated._pack_unfolded(
            layer, round_nvfp4(rows), lambda columns: round_nvfp4(columns, scale)
        )
    torch.testing.assert_close(emulate(layer, name, x), unfolded(x), atol=1e-4, rtol=1e-4)


def test_blocks_cross_pixels_where_channels_do_not_fill_them() -> None:
    # 4 channels, 3 x 3: 36 values a row, in blocks of 32 and 4.
    layer, x = convolution(4, 3), random(1, 4, 3, 3)
    column = x.permute(0, 2, 3, 1).flatten()
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    assert layer.bias is not None
    expected = round_mxfp4(weight) @ round_mxfp4(column) + layer.bias
    torch.testing.assert_close(emulate(layer, "mxfp4", x).flatten(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_precision_emulates_every_geometry(name: str, geometry: str) -> None:
    layer, x = convolution(**GEOMETRIES[geometry]), random(2, 64, 9, 9)
    expected = layer.apply(x, layer.weight)
    found = emulate(layer, name, x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    wide = precision(name).weight_bits >= 8
    assert relative_error(found, expected) < (0.06 if wide else 2.0)


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_integers_round_weights_by_channel_and_inputs_by_tensor_or_token(kind: str, bits: int) -> None:
    layer = convolution(4, 7) if kind == "conv" else take_weights(nn.Linear(20, 7))
    x = random(2, 4, 5, 5) if kind == "conv" else random(5, 20)
    scale = integer_weight_scale(layer.weight, bits)
    weight = dequantize_weight(quantize_weight(layer.weight, scale, bits), scale)
    rounded = fake_quantize(x, calibrated(x).affine[bits])
    if kind == "linear" and bits >= LEAST_TOKEN_BITS:
        tokens = quantize_tokens(x, bits)
        rounded = tokens.steps * tokens.scale
    torch.testing.assert_close(emulate(layer, f"int{bits}", x), layer.apply(rounded, weight))


@pytest.mark.parametrize(("name", "bits"), [("int8_wo", 8), ("int4_wo", 4)])
def test_weight_only_formats_compute_in_bf16(name: str, bits: int) -> None:
    layer, x = take_weights(nn.Linear(20, 7)), random(5, 20)
    scale = integer_weight_scale(layer.weight, bits)
    weight = round_float(dequantize_weight(quantize_weight(layer.weight, scale, bits), scale), "bf16")
    expected = round_float(F.linear(round_float(x, "bf16"), weight, layer.bias), "bf16")
    assert torch.equal(emulate(layer, name, x), expected)


def test_fp32_changes_nothing() -> None:
    layer, x = convolution(), random(1, 64, 5, 5)
    assert torch.equal(emulate(layer, "fp32", x), layer.apply(x, layer.weight))


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_nan_in_the_input_reaches_the_output_of_its_sample_only(name: str) -> None:
    layer, x = take_weights(nn.Linear(64, 8)), random(4, 64)
    kernel = pack(layer, precision(name), calibrated(x), native=True)
    x[2, 5] = math.nan
    nan = kernel.run(x).isnan()
    assert nan[2].all()
    assert not nan[[0, 1, 3]].any()


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_kernels_do_not_write_into_their_input(name: str, kind: str) -> None:
    layer = convolution() if kind == "conv" else take_weights(nn.Linear(64, 8))
    x = random(2, 64, 4, 4) if kind == "conv" else random(2, 64)
    before = x.clone()
    pack(layer, precision(name), calibrated(x), native=True).run(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", PRECISIONS)
def test_any_memory_layout_gives_the_same_result(name: str) -> None:
    layer, x = convolution(padding=1), random(2, 64, 6, 6)
    kernel = pack(layer, precision(name), calibrated(x), native=True)
    expected = kernel.run(x)
    strided = torch.empty(2, 64, 6, 12)[..., ::2]
    strided.copy_(x)
    # Sums in another order differ by 1e-7, which a 16-bit output may round to the neighbouring value.
    neighbour = {"bf16": 2.0**-7, "fp16": 2.0**-10}.get(precision(name).compute, 1e-4)
    for other in (x.contiguous(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(kernel.run(other), expected, atol=1e-4, rtol=neighbour)


def test_taking_weights_leaves_the_module_its_own() -> None:
    module = nn.Conv2d(2, 3, (1, 2), (2, 1), (0, 1), 1, bias=True)
    layer = take_weights(module)
    assert torch.equal(layer.weight, module.weight)
    assert layer.weight.data_ptr() != module.weight.data_ptr()
    assert layer.bias is not None
    assert module.bias is not None
    assert layer.bias.data_ptr() != module.bias.data_ptr()
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 1), (0, 1), (1, 1), 1)
    assert layer.is_conv
    assert not layer.weight.requires_grad


# --- native -----------------------------------------------------------------------------------------------
#
# On a machine without a native kernel these compare emulation with itself, which must hold as well.


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
