"""Native and emulated kernels agree; tests marked ``gpu`` run the operations themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from cuda_stand_ins import CUDA, calibrated, conv, linear, operation, relative_error, with_stand_in
from torch import Tensor, nn

from wattbit.execution.kernels import find_native
from wattbit.execution.kernels.cuda_float import pack_half, pack_tf32
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.execution.kernels.layer_weights import LayerWeights, take_weights
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision

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
        F.cross_entropy(net(x), labels).backward()  # type: ignore[no-untyped-call]
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
    assert layer.bias is not None
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
