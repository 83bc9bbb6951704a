"""What is not finite at the reference is not finite at any precision: in inputs, and inside the network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from attached import uniform
from cuda_stand_ins import with_stand_in
from torch import Tensor, nn

from wattbit.calibration import ActivationObserver
from wattbit.execution.kernels import pack
from wattbit.execution.kernels.layer_weights import take_weights
from wattbit.execution.switchable import SwitchableModel
from wattbit.precision import PRECISIONS, precision

NAMES = [name for name in PRECISIONS if name != "fp32"]
BAD = [math.nan, math.inf, -math.inf]
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(32, 8, 3, padding=1), (3, 32, 6, 6)),
    "odd conv": (nn.Conv2d(3, 6, 3, stride=2, dilation=2), (3, 3, 9, 9)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (3, 8, 5, 5)),
    "image": (nn.Conv2d(4, 4, 1), (4, 5, 5)),
    "linear": (nn.Linear(64, 8), (3, 64)),
    "tokens": (nn.Linear(33, 8, bias=False), (3, 4, 33)),
}


def whether_finite(layer: nn.Module, run: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return run(x).isfinite(), layer(x).isfinite()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_finite_shows_wherever_it_shows_at_the_reference(
    name: str, kind: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattbit.execution.kernels.cpu.has_vnni", lambda: True)
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    observer = ActivationObserver("layer")
    observer.observe(x)
    run = pack(take_weights(layer), precision(name), observer.calibrate(range(2, 9)), native=native).run
    assert run(x).isfinite().all()
    for index in (0, x.numel() // 2, x.numel() - 1):
        for values in ([math.nan], [math.inf], [-math.inf], [math.inf, -math.inf], [3.4e38, 3.4e38, 3.4e38]):
            bad = x.clone()
            bad.view(-1)[index - len(values) + 1 : index + 1 or None] = torch.tensor(values)[: index + 1]
            found, expected = whether_finite(layer, run, bad)
            assert not (found & ~expected).any(), values
            # Samples that are not concerned stay finite; of large numbers, 16-bit formats make infinity.
            if x.ndim in (2, 4) and not math.isfinite(sum(values)):
                others = expected.flatten(1).all(1)
                assert found[others].all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["fp8_e4m3", "int8", "int4_wo"])
def test_gpu_kernels_carry_it_too(name: str, bad: float) -> None:
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    observer = ActivationObserver("layer")
    observer.observe(x)
    run = with_stand_in(name)(take_weights(layer), precision(name), observer.calibrate([8]))
    x[3, 7] = bad
    found, expected = whether_finite(layer, run, x)
    assert torch.equal(found, expected)


class Overflowing(nn.Module):
    """Overflows inside for inputs that are large but finite, and hides it from NaN with a comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.narrow = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).exp()
        y = self.narrow(torch.where(y > 0, y, torch.zeros_like(y)))
        y = torch.where(y > 0, y, torch.zeros_like(y))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_what_overflows_inside_the_network_is_seen(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattbit.execution.kernels.cpu.has_vnni", lambda: True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Overflowing().eval()
    model.narrow.weight.abs_()
    x = tiny.images(6)
    with SwitchableModel(model, x, [name], native=native) as switchable:
        switchable.calibrate([x])
        for late in ("narrow", "head"):
            plan = switchable.reference_plan.replace(**{late: name})
            bad = x.clone()
            bad[2] *= 1e4
            reference = switchable.run(bad, switchable.reference_plan).isfinite().all(1)
            assert reference.tolist() == [True, True, False, True, True, True]
            assert not switchable.run(bad, plan)[2].isfinite().all()
        for value in (math.nan, math.inf, -math.inf):
            bad = x.clone()
            bad[4, 0, 2, 2] = value
            reference = switchable.run(bad, switchable.reference_plan).isfinite().all(1)
            found = switchable.run(bad, uniform(switchable, name)).isfinite().all(1)
            assert not (found & ~reference).any()
