"""CUDA kernels: what surrounds the device's operation runs here too, with a stand-in that keeps its contract.

Tests marked ``gpu`` run the operations themselves.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wattbit.calibration import LayerCalibration
from wattbit.errors import WattbitError
from wattbit.execution.kernels import cuda, find_native
from wattbit.execution.kernels.cuda import CUDA_KERNELS, CUDA_OPERATIONS, CudaOperation
from wattbit.execution.kernels.cuda_float import has_fp32_precision, pack_half, pack_tf32, tf32_products
from wattbit.execution.kernels.cuda_low_bit import (
    int4_bytes,
    int4_tiling,
    pack_fp8,
    pack_int4_wo,
    pack_int8,
)
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.execution.kernels.layer_weights import LayerWeights, take_weights
from wattbit.execution.switchable import SwitchableModel
from wattbit.numerics import activation_quantizer
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision

CUDA = torch.device("cuda:0")
INT8, FP8, INT4_WO = precision("int8"), precision("fp8_e4m3"), precision("int4_wo")


# --- stand-ins for the device's operations, as strict as they are -------------------------------------------


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """`torch._int_mm` as CUDA documents it."""
    assert a.dtype == b.dtype == torch.int8
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert a.shape[0] > 16
    assert a.shape[1] % 8 == 0
    assert b.shape[1] % 8 == 0
    return (a.double() @ b.double()).to(torch.int32)


def fp8_product(a: Tensor, b: Tensor) -> Tensor:
    """`torch._scaled_mm` with scales of 1, as CUDA documents it."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert a.shape[1] % 16 == 0
    assert b.shape[1] % 16 == 0
    return (a.double() @ b.double()).float()


def int4_pack(codes: Tensor, inner_tiles: int) -> Tensor:
    """`torch._convert_weight_to_int4pack` as CUDA documents it; the layout is the device's own affair."""
    assert codes.dtype == torch.uint8
    assert codes.is_contiguous()
    assert inner_tiles in (2, 4, 8)
    assert codes.shape[1] * 2 % (16 * inner_tiles) == 0
    return codes


def int4_product(a: Tensor, packed: Tensor, group: int, scales_and_zeros: Tensor) -> Tensor:
    """`torch._weight_int4pack_mm` as CUDA documents it: even columns lie in the high halves."""
    width = a.shape[1]
    assert a.dtype == scales_and_zeros.dtype == torch.bfloat16
    assert a.is_contiguous()
    assert group in (32, 64, 128, 256)
    assert width % group == 0
    assert scales_and_zeros.shape == (width // group, len(packed), 2)
    assert scales_and_zeros.is_contiguous()
    codes = torch.stack([packed >> 4, packed & 0xF], 2).flatten(1).double() - 8
    scales, zeros = scales_and_zeros.double().repeat_interleave(group, 0).unbind(2)
    weight = (codes * scales.t() + zeros.t()).bfloat16()
    return (a.double() @ weight.double().t()).bfloat16()


def with_stand_in(name: str):
    """The pack function of a low-bit precision, with its stand-in for the device's operation."""
    return {
        "int8": lambda *args: pack_int8(*args, int8_product),
        "fp8_e4m3": lambda *args: pack_fp8(*args, fp8_product),
        "int4_wo": lambda *args: pack_int4_wo(*args, int4_pack, int4_product),
    }[name]


def operation(name: str) -> CudaOperation:
    return next(operation for operation in CUDA_OPERATIONS if operation.precision == name)


def linear(out: int, width: int, *, bias: bool = True, seed: int = 0) -> LayerWeights:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator) * torch.rand(out, 1, generator=generator) * 3
    return LayerWeights(weight, torch.randn(out, generator=generator) if bias else None)


def conv(groups: int = 1, *, stride: int = 1) -> LayerWeights:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 8 // groups, 3, 3, generator=generator)
    return LayerWeights(weight, torch.randn(8, generator=generator), (stride, stride), (1, 1), groups=groups)


def calibrated(x: Tensor) -> LayerCalibration:
    return LayerCalibration(float(x.abs().max()), {8: activation_quantizer(x, 8)})


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- low-bit kernels ----------------------------------------------------------------------------------------

# Relative to the output: int8 and fp8 differ by the order of a float32 sum, int4_wo by roundings to bf16.
LOW_BIT = [("int8", 2e-6), ("fp8_e4m3", 2e-6), ("int4_wo", 1e-2)]


@pytest.mark.parametrize(("name", "tolerance"), LOW_BIT)
@settings(deadline=None, max_examples=25)
@given(
    out=st.integers(1, 5).map(lambda n: 16 * n),
    width=st.integers(1, 9).map(lambda n: 32 * n),
    batch=st.lists(st.integers(1, 7), min_size=0, max_size=3),
    bias=st.booleans(),
    shift=st.sampled_from([0.0, -2.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_a_low_bit_kernel_gives_what_the_emulated_one_gives(
    name: str, tolerance: float, out: int, width: int, batch: list[int], bias: bool, shift: float, seed: int
) -> None:
    layer = linear(out, width, bias=bias, seed=seed)
    sample = torch.randn(64, width, generator=torch.Generator().manual_seed(seed)) + shift
    x = torch.randn(*batch, width, generator=torch.Generator().manual_seed(seed + 1)) * 1.5 + shift
    wanted = precision(name)

    found = with_stand_in(name)(layer, wanted, calibrated(sample))(x)

    expected = pack_emulated(layer, wanted, calibrated(sample))(x)
    assert found.shape == expected.shape == (*batch, out)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert relative_error(found, expected) <= tolerance


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64)])
def test_a_batch_without_samples_gives_none_back(name: str, shape: tuple[int, ...]) -> None:
    layer, x = linear(32, 64), torch.randn(8, 64)
    run = with_stand_in(name)(layer, precision(name), calibrated(x))
    assert run(torch.zeros(shape)).shape == (*shape[:-1], 32)


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_a_kernel_leaves_its_input_as_it_was(name: str) -> None:
    layer, x = linear(32, 64), torch.randn(8, 64) * 100
    run = with_stand_in(name)(layer, precision(name), calibrated(torch.randn(8, 64)))
    before = x.clone()
    run(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_inputs_that_are_not_contiguous_are_read_right(name: str) -> None:
    layer, x = linear(32, 64), torch.randn(64, 5).t()
    run = with_stand_in(name)(layer, precision(name), calibrated(x))
    assert torch.equal(run(x), run(x.contiguous()))


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_weights_that_are_stored_transposed_are_read_right(name: str) -> None:
    layer, x = linear(32, 64), torch.randn(5, 64)
    transposed = dataclasses.replace(layer, weight=layer.weight.t().contiguous().t())
    pack = with_stand_in(name)
    expected = pack(layer, precision(name), calibrated(x))(x)
    assert torch.equal(pack(transposed, precision(name), calibrated(x))(x), expected)


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_a_nan_in_the_input_is_seen_in_the_output(name: str) -> None:
    layer, x = linear(32, 64), torch.randn(8, 64)
    run = with_stand_in(name)(layer, precision(name), calibrated(x))
    x[3, 5] = torch.nan
    assert run(x)[3].isnan().all()


@pytest.mark.parametrize(
    ("name", "unseen"), [("int8", (1e6, -1e6, 1e30)), ("fp8_e4m3", (torch.inf, -torch.inf, 1e30))]
)
def test_what_calibration_never_saw_runs_as_emulated(name: str, unseen: tuple[float, float, float]) -> None:
    layer, x = linear(32, 64), torch.randn(8, 64)
    calibration = calibrated(x)
    run = with_stand_in(name)(layer, precision(name), calibration)
    x[0, 0], x[1, 1], x[2, 2] = unseen
    expected = pack_emulated(layer, precision(name), calibration)(x)
    assert expected.isfinite().all()
    assert relative_error(run(x), expected) <= 2e-6


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_an_output_channel_of_zeros_stays_zero(name: str) -> None:
    layer = linear(32, 64, bias=False)
    layer.weight[7] = 0.0
    x = torch.randn(8, 64)
    run = with_stand_in(name)(layer, precision(name), calibrated(x))
    assert torch.equal(run(x)[:, 7], torch.zeros(8))


def test_torchs_own_products_keep_the_contract_that_the_stand_ins_have() -> None:
    layer, x = linear(32, 64), torch.randn(40, 64)
    for name, pack in (("int8", pack_int8), ("fp8_e4m3", pack_fp8)):
        found = pack(layer, precision(name), calibrated(x))(x)
        expected = with_stand_in(name)(layer, precision(name), calibrated(x))(x)
        assert relative_error(found, expected) <= 1e-6


@given(multiple=st.integers(1, 400))
def test_tiles_and_groups_of_4_bit_weights_always_fit_the_width(multiple: int) -> None:
    width = 32 * multiple
    group, inner_tiles = int4_tiling(width)
    assert width % group == 0
    assert width % (16 * inner_tiles) == 0
    assert group >= 32


def test_4_bit_codes_lie_two_in_a_byte_the_even_column_high() -> None:
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    assert int4_bytes(codes).tolist() == [[0x0F, 0x87]]


# --- float kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 4e-3), ("fp16", 5e-4)])
@pytest.mark.parametrize("layer", [linear(24, 40), conv(), conv(stride=2), conv(groups=8), conv(groups=2)])
def test_a_16_bit_kernel_gives_what_the_emulated_one_gives(
    name: str, tolerance: float, layer: LayerWeights
) -> None:
    x = torch.randn(4, 8, 9, 7) if layer.is_conv else torch.randn(3, 5, 40)
    found = pack_half(layer, precision(name), calibrated(x))(x)
    expected = pack_emulated(layer, precision(name), calibrated(x))(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= tolerance


@pytest.mark.parametrize("layer", [linear(24, 40), conv(), conv(stride=2)])
def test_a_tf32_kernel_gives_what_the_emulated_one_gives(layer: LayerWeights) -> None:
    x = torch.randn(4, 8, 9, 7) if layer.is_conv else torch.randn(3, 5, 40)
    found = pack_tf32(layer, precision("tf32"), calibrated(x))(x)
    assert relative_error(found, pack_emulated(layer, precision("tf32"), calibrated(x))(x)) <= 1e-3


@pytest.mark.parametrize("pack", [pack_half, pack_tf32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_answers_in_the_layout_of_its_input(pack, layout: torch.memory_format) -> None:
    x = torch.randn(4, 8, 9, 7).contiguous(memory_format=layout)
    name = "bf16" if pack is pack_half else "tf32"
    y = pack(conv(), precision(name), calibrated(x))(x)
    assert y.is_contiguous(memory_format=layout)


def test_models_that_view_the_output_of_a_convolution_go_on_working() -> None:
    x = torch.randn(4, 8, 9, 7)
    y = pack_half(conv(), precision("bf16"), calibrated(x))(x)
    assert y.view(4, -1).shape == (4, 8 * 63)


@pytest.mark.parametrize(("pack", "name"), [(pack_half, "bf16"), (pack_half, "fp16"), (pack_tf32, "tf32")])
def test_a_single_image_without_a_batch_axis_runs(pack, name: str) -> None:
    x = torch.randn(8, 9, 7)
    run = pack(conv(), precision(name), calibrated(x))
    assert torch.allclose(run(x), run(x.unsqueeze(0)).squeeze(0), atol=1e-2)


@pytest.fixture
def tf32_switch() -> Iterator[str]:
    """Name of the switch for TF32 products; put back afterwards, whatever a test does to it."""
    switch = torch.backends.cuda.matmul
    name = "fp32_precision" if has_fp32_precision() else "allow_tf32"
    before = getattr(switch, name)
    yield name
    setattr(switch, name, before)


def test_tf32_is_on_inside_and_as_it_was_afterwards_also_after_an_error(tf32_switch: str) -> None:
    switch = torch.backends.cuda.matmul
    before = getattr(switch, tf32_switch)

    def fail_inside() -> None:
        with tf32_products():
            assert getattr(switch, tf32_switch) in ("tf32", True)
            raise WattbitError

    with pytest.raises(WattbitError):
        fail_inside()
    assert getattr(switch, tf32_switch) == before
    assert switch.allow_tf32 is False


def test_a_user_who_allows_tf32_keeps_it(tf32_switch: str) -> None:
    switch = torch.backends.cuda.matmul
    on = "tf32" if has_fp32_precision() else True
    setattr(switch, tf32_switch, on)
    with tf32_products():
        pass
    assert getattr(switch, tf32_switch) == on


def test_threads_that_run_tf32_at_once_leave_it_off(tf32_switch: str) -> None:
    switch = torch.backends.cuda.matmul
    before = getattr(switch, tf32_switch)
    seen: list[object] = []

    def work() -> None:
        for _ in range(200):
            with tf32_products():
                seen.append(getattr(switch, tf32_switch))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= {"tf32", True}
    assert len(seen) == 800
    assert getattr(switch, tf32_switch) == before


# --- asking the device --------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretends that the GPU has a capability, and that every kernel passes its trial."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(cuda, "compute_capability", lambda device: capability)

    monkeypatch.setattr(cuda, "works", lambda operation, device, is_conv: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    pretend(9, 0)
    return pretend


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 1), set()),
        ((7, 0), {"fp16"}),
        ((7, 5), {"fp16", "int8"}),
        ((8, 0), {"tf32", "bf16", "fp16", "int8", "int4_wo"}),
        ((8, 6), {"tf32", "bf16", "fp16", "int8", "int4_wo"}),
        ((8, 9), {"tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int4_wo"}),
        ((9, 0), {"tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int4_wo"}),
        ((0, 0), set()),  # torch built for another maker's GPUs
    ],
)
def test_a_device_runs_what_its_capability_has(gpu, capability: tuple[int, int], runs: set[str]) -> None:
    gpu(*capability)
    layer = linear(64, 64)
    found = {name for name in PRECISION_NAMES if _supported(name, layer)}
    assert found == runs


PRECISION_NAMES = ("tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int6", "int4", "mxfp4", "int8_wo", "int4_wo")


def _supported(name: str, layer: LayerWeights) -> bool:
    return any(kernel.supports(CUDA, layer, precision(name)) for kernel in CUDA_KERNELS)


@pytest.mark.parametrize(
    ("out", "width", "refused"),
    [
        (64, 64, set()),
        (72, 64, {"fp8_e4m3"}),
        (64, 72, {"fp8_e4m3", "int4_wo"}),
        (10, 64, {"fp8_e4m3", "int8", "int4_wo"}),
        (64, 84, {"fp8_e4m3", "int8", "int4_wo"}),
    ],
)
def test_shapes_that_an_operation_cannot_take_are_refused(
    gpu, out: int, width: int, refused: set[str]
) -> None:
    layer = linear(out, width)
    names = {"tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int4_wo"}
    assert {name for name in names if not _supported(name, layer)} == refused


def test_convolutions_run_natively_in_the_float_formats_only(gpu) -> None:
    assert {name for name in PRECISION_NAMES if _supported(name, conv())} == {"tf32", "bf16", "fp16"}


def test_tf32_is_no_name_for_a_depthwise_convolution_in_fp32(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _supported("tf32", conv(groups=8))
    assert _supported("bf16", conv(groups=8))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert not _supported("tf32", conv())


def test_no_cuda_kernel_runs_a_layer_that_lies_on_the_cpu() -> None:
    layer = linear(64, 64)
    assert find_native(layer, precision("bf16")) is None
    assert not any(kernel.supports(torch.device("cpu"), layer, INT8) for kernel in CUDA_KERNELS)


def test_another_makers_torch_has_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.compute_capability(CUDA) == (0, 0)


def test_the_capability_is_that_of_the_device_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: {0: (7, 0), 1: (9, 0)}[device.index]
    )
    assert cuda.compute_capability(torch.device("cuda:1")) == (9, 0)


def _tried(name: str, pack) -> bool:
    """The trial of a kernel, here on the CPU, with ``pack`` in its place."""
    return cuda.works.__wrapped__(dataclasses.replace(operation(name), pack=pack), torch.device("cpu"), False)


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo"])
def test_a_kernel_that_computes_as_it_should_passes_its_trial(name: str) -> None:
    assert _tried(name, with_stand_in(name))


@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("is_conv", [False, True])
def test_float_kernels_pass_their_trial(name: str, is_conv: bool) -> None:
    assert cuda.works.__wrapped__(operation(name), torch.device("cpu"), is_conv)


def test_a_product_that_is_wrong_on_this_device_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert not _tried("int8", lambda *args: pack_int8(*args, lambda a, b: int8_product(a, b) // 2))
    assert "cuda int8 on cpu is off by" in caplog.text


def test_a_product_that_gives_nan_is_not_used() -> None:
    nan = lambda a, b: fp8_product(a, b) * torch.nan  # noqa: E731
    assert not _tried("fp8_e4m3", lambda *args: pack_fp8(*args, nan))


def test_an_operation_that_this_device_refuses_is_emulated_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nsome more lines")

    assert not _tried("int8", lambda *args: pack_int8(*args, refuse))
    assert "cuda int8 does not run on cpu (CUBLAS_STATUS_NOT_SUPPORTED): it is emulated" in caplog.text


def test_running_out_of_memory_in_a_trial_says_nothing_about_the_kernel() -> None:
    def exhaust(a: Tensor, b: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        _tried("int8", lambda *args: pack_int8(*args, exhaust))


def test_a_trial_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _tried("int8", with_stand_in("int8"))
    assert torch.equal(torch.rand(3), expected)


# --- predictions --------------------------------------------------------------------------------------------


def _trained_perceptron() -> tuple[nn.Sequential, Tensor]:
    """A network of linear layers that tells 16 clusters apart, and 2,000 samples of them."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(16, 32, generator=generator)
    labels = torch.randint(16, (2000,), generator=generator)
    x = centres[labels] + 0.6 * torch.randn(2000, 32, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval(), x


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4_wo", "bf16", "fp16", "tf32"])
def test_native_and_emulated_predictions_agree(name: str) -> None:
    net, x = _trained_perceptron()
    packs = {"bf16": pack_half, "fp16": pack_half, "tf32": pack_tf32}
    pack = packs[name] if name in packs else with_stand_in(name)
    outputs = []
    with torch.inference_mode():
        for pack_layer in (pack, pack_emulated):
            y = x
            for module in net:
                if isinstance(module, nn.Linear):
                    y = pack_layer(take_weights(module), precision(name), calibrated(y))(y)
                else:
                    y = module(y)
            outputs.append(y.argmax(1))
    assert float((outputs[0] == outputs[1]).double().mean()) >= 0.999


# --- on a device --------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int4_wo"])
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 1000])
@pytest.mark.parametrize(("out", "width"), [(64, 64), (16, 32), (3072, 768), (768, 3072)])
def test_each_native_kernel_of_this_gpu_gives_what_the_emulated_one_gives(
    name: str, rows: int, out: int, width: int
) -> None:
    layer, x = linear(out, width), torch.randn(rows, width)
    calibration = calibrated(torch.randn(256, width))
    layer = LayerWeights(layer.weight.to(CUDA), None if layer.bias is None else layer.bias.to(CUDA))
    native = find_native(layer, precision(name))
    if native is None:
        # Only a device that is too old has an excuse.
        assert torch.cuda.get_device_capability(CUDA) < operation(name).least_capability
        return
    found = native.pack(layer, precision(name), calibration)(x.to(CUDA))
    expected = pack_emulated(layer, precision(name), calibration)(x.to(CUDA))
    assert relative_error(found, expected) <= 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 8])
def test_each_native_convolution_of_this_gpu_gives_what_the_emulated_one_gives(
    name: str, layout: torch.memory_format, groups: int
) -> None:
    layer = conv(groups)
    layer = dataclasses.replace(layer, weight=layer.weight.to(CUDA), bias=layer.bias.to(CUDA))
    x = torch.randn(4, 8, 9, 7).to(CUDA).contiguous(memory_format=layout)
    native = find_native(layer, precision(name))
    if native is not None:
        y = native.pack(layer, precision(name), calibrated(x.cpu()))(x)
        assert y.is_contiguous(memory_format=layout)
        expected = pack_emulated(layer, precision(name), calibrated(x.cpu()))(x)
        assert relative_error(y, expected) <= 5e-3


@pytest.mark.gpu
def test_a_model_on_this_gpu_switches_between_native_precisions() -> None:
    net, x = _trained_perceptron()
    net, x = net.to(CUDA), x.to(CUDA)
    with SwitchableModel(net, x[:2], ["bf16", "int8"]) as model:
        model.calibrate([x[:512]])
        reference = model.logits([x]).argmax(1)
        for name in ("bf16", "int8"):
            model.switch(PrecisionPlan.uniform(model.layer_names, name))
            assert float((model.logits([x]).argmax(1) == reference).double().mean()) > 0.97
