"""Float CUDA kernels: tf32 and 16 bits, exact layouts, and switches put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from cuda_stand_ins import calibrated, conv, linear, relative_error

from wattbit.errors import WattbitError
from wattbit.execution.kernels.cuda_float import has_fp32_precision, pack_half, pack_tf32, tf32_products
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.execution.kernels.kernel import Pack
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.precision import precision


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
def test_a_convolution_answers_in_the_layout_of_its_input(pack: Pack, layout: torch.memory_format) -> None:
    x = torch.randn(4, 8, 9, 7).contiguous(memory_format=layout)
    name = "bf16" if pack is pack_half else "tf32"
    y = pack(conv(), precision(name), calibrated(x))(x)
    assert y.is_contiguous(memory_format=layout)


def test_models_that_view_the_output_of_a_convolution_go_on_working() -> None:
    x = torch.randn(4, 8, 9, 7)
    y = pack_half(conv(), precision("bf16"), calibrated(x))(x)
    assert y.view(4, -1).shape == (4, 8 * 63)


@pytest.mark.parametrize(("pack", "name"), [(pack_half, "bf16"), (pack_half, "fp16"), (pack_tf32, "tf32")])
def test_a_single_image_without_a_batch_axis_runs(pack: Pack, name: str) -> None:
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
