"""Which CUDA kernels a device runs: its capability, the shapes, and a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cuda_stand_ins import CUDA, INT8, conv, fp8_product, int8_product, linear, operation, with_stand_in
from torch import Tensor

from wattbit.execution.kernels import cuda, find_native
from wattbit.execution.kernels.cuda_low_bit import pack_fp8, pack_int8
from wattbit.execution.kernels.kernel import Pack
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.registry import NATIVE_KERNELS
from wattbit.precision import precision


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
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
def test_a_device_runs_what_its_capability_has(
    gpu: Callable[..., None], capability: tuple[int, int], runs: set[str]
) -> None:
    gpu(*capability)
    layer = linear(64, 64)
    found = {name for name in PRECISION_NAMES if _supported(name, layer)}
    assert found == runs


PRECISION_NAMES = ("tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int6", "int4", "mxfp4", "int8_wo", "int4_wo")


def _supported(name: str, layer: LayerWeights) -> bool:
    return any(kernel.supports(CUDA, layer, precision(name)) for kernel in NATIVE_KERNELS)


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
    gpu: Callable[..., None], out: int, width: int, refused: set[str]
) -> None:
    layer = linear(out, width)
    names = {"tf32", "bf16", "fp16", "fp8_e4m3", "int8", "int4_wo"}
    assert {name for name in names if not _supported(name, layer)} == refused


def test_convolutions_run_natively_in_the_float_formats_only(gpu: Callable[..., None]) -> None:
    assert {name for name in PRECISION_NAMES if _supported(name, conv())} == {"tf32", "bf16", "fp16"}


def test_tf32_is_no_name_for_a_depthwise_convolution_in_fp32(
    gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _supported("tf32", conv(groups=8))
    assert _supported("bf16", conv(groups=8))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert not _supported("tf32", conv())


def test_no_cuda_kernel_runs_a_layer_that_lies_on_the_cpu() -> None:
    layer = linear(64, 64)
    assert find_native(layer, precision("bf16")) is None
    assert not any(kernel.supports(torch.device("cpu"), layer, INT8) for kernel in NATIVE_KERNELS)


def test_another_makers_torch_has_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.compute_capability(CUDA) == (0, 0)


def test_the_capability_is_that_of_the_device_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: {0: (7, 0), 1: (9, 0)}[device.index]
    )
    assert cuda.compute_capability(torch.device("cuda:1")) == (9, 0)


def _tried(name: str, pack: Pack) -> bool:
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
    assert not _tried("int8", partial(pack_int8, product=lambda a, b: int8_product(a, b) // 2))
    assert "cuda int8 on cpu is off by" in caplog.text


def test_a_product_that_gives_nan_is_not_used() -> None:
    assert not _tried("fp8_e4m3", partial(pack_fp8, product=lambda a, b: fp8_product(a, b) * torch.nan))


def test_an_operation_that_this_device_refuses_is_emulated_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nsome more lines")

    assert not _tried("int8", partial(pack_int8, product=refuse))
    assert "cuda int8 does not run on cpu (CUBLAS_STATUS_NOT_SUPPORTED): it is emulated" in caplog.text


def test_running_out_of_memory_in_a_trial_says_nothing_about_the_kernel() -> None:
    def exhaust(a: Tensor, b: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        _tried("int8", partial(pack_int8, product=exhaust))


def test_a_trial_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _tried("int8", with_stand_in("int8"))
    assert torch.equal(torch.rand(3), expected)
