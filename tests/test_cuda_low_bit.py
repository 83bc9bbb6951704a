"""Low-bit CUDA kernels: what surrounds the device's operation, with a stand-in that keeps its contract."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_stand_ins import calibrated, linear, relative_error, with_stand_in
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.execution.kernels.cuda_low_bit import int4_bytes, int4_tiling, pack_fp8, pack_int8
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.precision import precision

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


@pytest.mark.parametrize(("name", "unseen"), [("int8", (1e6, -1e6, 1e30)), ("fp8_e4m3", (1e6, -1e6, 1e11))])
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
