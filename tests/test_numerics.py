"""What all formats promise: no side effects, the same numbers on every device and in every mode."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from wattbit.numerics import (
    FLOAT_FORMATS,
    AffineQuantizer,
    dequantize_weight,
    fake_quantize,
    fp8_weight,
    integer_weight_scale,
    quantize,
    quantize_weight,
    round_float,
    round_mxfp4,
    round_nvfp4,
    scale_round_fp8,
)


def everything() -> dict[str, Callable[[Tensor], Tensor]]:
    quantizer = AffineQuantizer(0.1, 7, 4)
    return {
        **{name: partial(round_float, name=name) for name in FLOAT_FORMATS},
        "scaled fp8": lambda x: scale_round_fp8(x, 0.013),
        "mxfp4": round_mxfp4,
        "nvfp4": round_nvfp4,
        "nvfp4 calibrated": lambda x: round_nvfp4(x, 1e-3),
        "fake_quantize": lambda x: fake_quantize(x, quantizer),
        "quantize": lambda x: quantize(x, quantizer),
        "int4 weight": lambda x: quantize_weight(x, torch.ones(len(x), device=x.device), 4),
    }


@pytest.mark.parametrize("name", everything())
def test_formats_work_with_and_without_gradients_and_in_inference_mode(name: str) -> None:
    function = everything()[name]
    parameter = torch.nn.Parameter(torch.randn(6, 40))
    with torch.inference_mode():
        inside = function(torch.randn(6, 40).copy_(parameter))
    outside = function(parameter)
    assert torch.equal(outside, inside)
    assert torch.equal(function(parameter.detach().clone()), inside)


@pytest.mark.parametrize("name", everything())
def test_formats_stay_on_the_device_of_their_input(name: str) -> None:
    assert everything()[name](torch.empty(6, 40, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", everything())
def test_formats_leave_their_input_alone(name: str) -> None:
    x = torch.randn(6, 40)
    before = x.clone()
    everything()[name](x)
    assert torch.equal(x, before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", everything())
def test_formats_round_on_a_gpu_as_on_a_cpu(name: str) -> None:
    patterns = np.random.default_rng(0).integers(0, 1 << 32, (4096, 80), dtype=np.uint32)
    x = torch.from_numpy(patterns.view(np.float32)).nan_to_num_(
        nan=math.nan
    )  # the payload of a NaN may differ
    function = everything()[name]
    expected, found = function(x), function(x.cuda()).cpu()
    known = x.isnan().logical_not() if name == "quantize" else expected.isnan().logical_not()
    assert torch.equal(found[known], expected[known])
    assert found[~known].isnan().all() or name == "quantize"


def test_weights_that_require_gradients_can_be_quantized() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    scale = integer_weight_scale(weight, 4)
    rounded = dequantize_weight(quantize_weight(weight, scale, 4), scale)
    assert not rounded.requires_grad
    assert not fp8_weight(weight).requires_grad
