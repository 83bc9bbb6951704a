"""Where only the next int8 layer reads what an int8 layer writes, both speak 8 bits; nothing else changes."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from wattbit.execution.discovery import find_layers, foldable
from wattbit.execution.in_flight import InFlightBatch
from wattbit.execution.int8_chaining import Int8Chain, find_chains
from wattbit.execution.kernels.cpu import has_vnni
from wattbit.execution.layer_uses import watch_uses
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan


class Net(nn.Module):
    """Convolutions that feed each other directly, through a ReLU, and through a ReLU that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.conv4 = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.conv1(x))
        z = self.relu2(self.norm2(self.conv2(y)))
        z = self.conv4(self.conv3(z) + z)
        logits: Tensor = self.head(z.flatten(1))
        return logits


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().eval()


def names(model: nn.Module) -> dict[tuple[str, str], Int8Chain]:
    x = tiny.images(4)
    uses = watch_uses(model, x)
    found = foldable(model, x, find_layers(model, x), uses)
    chains = find_chains(found, uses)
    return {(found[chain.producer].shape.name, found[chain.consumer].shape.name): chain for chain in chains}


def test_only_what_nobody_else_reads_is_chained() -> None:
    model = net()
    chains = names(model)
    # relu2 is read by conv3 and the sum, conv3 by the sum, conv4 by a flatten.
    assert list(chains) == [("conv1", "conv2")]
    assert chains["conv1", "conv2"].relu is model.relu1


def test_looking_for_links_leaves_the_model_as_it_was() -> None:
    model, x = net(), tiny.images(4)
    expected = model(x)
    names(model)
    assert torch.equal(model(x), expected)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_chained_layers_answer_as_emulated_ones() -> None:
    x = tiny.images(64)
    logits = []
    for native in (True, False):
        with SwitchableModel(net(), x[:2], ["int8"], native=native) as model:
            model.calibrate([x])
            logits.append(model.logits([x], PrecisionPlan.uniform(model.layer_names, "int8")))
    native_logits, emulated = logits
    assert float((native_logits - emulated).abs().max()) < 0.02 * float(emulated.abs().max())
    assert torch.equal(native_logits.argmax(1), emulated.argmax(1))


def test_between_chained_layers_the_values_are_codes_and_elsewhere_floats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = net(), tiny.images(8)
    seen: list[torch.dtype] = []
    seal = InFlightBatch.seal

    def watched(batch: InFlightBatch, y: Tensor, readers: Any, differentiable: bool) -> Any:
        if readers[-1] is model.conv2:
            seen.append(y.dtype)
        return seal(batch, y, readers, differentiable)

    monkeypatch.setattr(InFlightBatch, "seal", watched)
    with SwitchableModel(model, x[:2], ["int8", "int4"]) as switchable:
        switchable.calibrate([x])
        plan = PrecisionPlan.uniform(switchable.layer_names, "int8")
        switchable.run(x, plan)
        assert seen == ([torch.uint8] if has_vnni() else [])
        seen.clear()
        for layer in ("conv1", "conv2"):
            switchable.run(x, plan.replace(**{layer: "int4"}))
        switchable.run(x)
        assert not seen


def test_a_nan_passes_through_chained_layers_and_is_seen() -> None:
    x = tiny.images(8)
    with SwitchableModel(net(), x[:2], ["int8"]) as model:
        model.calibrate([x])
        bad = x.clone()
        bad[3, 0, 2, 2] = torch.nan
        logits = model.logits([bad], PrecisionPlan.uniform(model.layer_names, "int8"))
    assert bool(logits[3].isnan().any())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_answers_are_laid_out_as_the_models_own(layout: torch.memory_format) -> None:
    """A model may call `view` on what a convolution returns."""
    body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = torch.rand(4, 4, 6, 6).contiguous(memory_format=layout)
    with SwitchableModel(body, x[:2], ["int8"]) as model, torch.inference_mode():
        model.calibrate([x])
        expected = model.run(x, model.reference_plan)
        answer = model.run(x, PrecisionPlan.uniform(model.layer_names, "int8"))
    assert answer.stride() == expected.stride()
