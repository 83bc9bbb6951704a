"""Native kernels are registered by a decorator, and asked in the order in which they were."""

from __future__ import annotations

import pytest
import torch

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels import LayerWeights, find_native, pack, registry
from wattbit.execution.kernels.kernel import Kernel, NativeKernel
from wattbit.precision import Precision, precision

LAYER = LayerWeights(torch.eye(3), None)
CALIBRATION = LayerCalibration(1.0, {})


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[NativeKernel]:
    none: list[NativeKernel] = []
    monkeypatch.setattr(registry, "NATIVE_KERNELS", none)
    return none


def supports_bf16(device: torch.device, layer: LayerWeights, wanted: Precision) -> bool:
    return device.type == "cpu" and wanted.name == "bf16"


def pack_doubled(layer: LayerWeights, wanted: Precision, calibration: LayerCalibration) -> Kernel:
    return lambda x: layer.apply(x, layer.weight) * 2


def test_a_registered_kernel_runs_what_it_supports_and_nothing_else(kernels: list[NativeKernel]) -> None:
    assert find_native(LAYER, precision("bf16")) is None
    assert registry.native_kernel("doubling", supports_bf16)(pack_doubled) is pack_doubled
    x = torch.ones(2, 3)
    packed = pack(LAYER, precision("bf16"), CALIBRATION, native=True)
    assert packed.native == "doubling"
    assert torch.equal(packed.run(x), x * 2)
    assert pack(LAYER, precision("fp16"), CALIBRATION, native=True).native is None
    assert pack(LAYER, precision("bf16"), CALIBRATION, native=False).native is None


def test_the_kernel_registered_first_is_taken(kernels: list[NativeKernel]) -> None:
    for name in ("first", "second"):
        registry.native_kernel(name, supports_bf16)(pack_doubled)
    found = find_native(LAYER, precision("bf16"))
    assert found is kernels[0]
    assert found.name == "first"


def test_without_a_native_kernel_a_layer_is_emulated(kernels: list[NativeKernel]) -> None:
    x = torch.rand(2, 3)
    found = pack(LAYER, precision("bf16"), CALIBRATION, native=True).run(x)
    assert torch.equal(found, x.bfloat16().float())
