"""What of a model can switch, counted independently of its layers; and what is claimed of the whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny
import torch
from console_text import printed
from results_example import example_results, read
from torch import Tensor, nn

from report.tables import full_screen, last_screen
from wattbit.coverage import Coverage
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.profiling.count_macs import count_macs, coverage_of


class Head(nn.Module):
    """Whatever ``body`` does to tokens (samples, 5, 8), and a linear layer on their mean."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, 5, 8) to (samples, 4)."""
        y = self.body(x, x, x) if isinstance(self.body, nn.MultiheadAttention) else self.body(x)
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))  # type: ignore[no-any-return]


def coverage(model: nn.Module, x: Tensor) -> Coverage:
    model.eval()
    counted = count_macs(model, x)
    with SwitchableModel(model, x, ["int8"]) as switchable:
        return coverage_of(switchable, counted)


HEAD = 8 * 4
RECURRENT = 5 * 2 * 8 * 8


@pytest.mark.parametrize(
    ("body", "outside", "kind"),
    [
        (nn.LSTM(8, 8, batch_first=True), 4 * RECURRENT, "LSTM"),
        (nn.GRU(8, 8, batch_first=True), 3 * RECURRENT, "GRU"),
        (nn.Conv1d(5, 5, 3, padding=1), 5 * 5 * 3 * 8, "Conv1d"),
        (nn.MultiheadAttention(8, 2, batch_first=True), 4 * 5 * 64 + 2 * 5 * 5 * 8, "MultiheadAttention"),
    ],
)
def test_what_does_not_switch_is_counted_and_named(body: nn.Module, outside: int, kind: str) -> None:
    found = coverage(Head(body), torch.randn(3, 5, 8))
    assert found.macs == pytest.approx(HEAD / (HEAD + outside))
    assert sum(part.macs for part in found.left_out) == pytest.approx(1 - found.macs)
    assert kind in found.text
    assert "body" in found.text
    assert found.withheld


def test_a_transformer_is_counted_although_torch_fuses_its_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = coverage(Head(nn.TransformerEncoder(layer, 1)), torch.randn(3, 5, 8))
    total = HEAD + 4 * 5 * 64 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
    assert found.macs in (pytest.approx(HEAD / total), pytest.approx((HEAD + 2 * 5 * 8 * 16) / total))


def test_a_model_of_convolutions_and_linear_layers_is_covered_whole() -> None:
    found = coverage(tiny.conv_model(), tiny.images(2))
    assert found.macs == 1.0
    assert not found.withheld
    assert not found.left_out


def profiled(found: Coverage) -> ModelProfile:
    return dataclasses.replace(tiny.profile(), coverage=found)


def test_a_modelled_saving_is_scaled_to_the_whole_model() -> None:
    profile, plain = profiled(Coverage(0.6, 0.5)), tiny.profile()
    energy_j = plain.reference_energy_j / 4
    assert profile.saving(energy_j) == pytest.approx(0.75 * 0.6)
    measured = dataclasses.replace(profile, provenance="measured", other_energy_j=0.0)
    assert measured.saving(energy_j) == pytest.approx(0.75)
    assert ModelProfile.from_json(profile.to_json()) == profile


class Tied(nn.Module):
    """An embedding, a linear layer, and a head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map words (samples, words) to logits (samples, 9)."""
        return self.head(self.body(self.embed(x).mean(1)))  # type: ignore[no-any-return]


def test_memory_counts_every_weight_of_the_model_and_tied_ones_once() -> None:
    model = Tied().eval()
    found = coverage(model, torch.zeros(2, 3, dtype=torch.int64))
    assert found.tied == (("", "head"),)
    assert found.weights == pytest.approx((9 * 8 + 64) / (9 * 8 + 64 + 8))
    made = tiny.profile()
    stored = {"body": 64 * 4, "head": 72 * 4}
    layers = tuple(
        dataclasses.replace(
            layer,
            shape=dataclasses.replace(layer.shape, name=name),
            costs={
                "fp32": dataclasses.replace(layer.costs["fp32"], memory_bytes=stored[name]),
                "int8": dataclasses.replace(layer.costs["int8"], memory_bytes=stored[name] // 4),
            },
        )
        for name, layer in zip(stored, made.layers, strict=False)
    )
    profile = dataclasses.replace(made, layers=layers, precisions=("fp32", "int8"), coverage=found)
    whole = sum(p.numel() * 4 for p in model.parameters())
    assert profile.plan_memory_bytes(profile.reference_plan) == whole
    low = PrecisionPlan.uniform(("body", "head"), "int8")
    # The embedding stays as it is, and the head has a copy of it in int8.
    assert profile.plan_memory_bytes(low) == whole - 64 * 4 + 64 + 72


@pytest.mark.parametrize("screen", [last_screen, full_screen])
def test_no_saving_is_claimed_below_half_of_the_macs(screen: Any) -> None:
    run = dataclasses.replace(read(example_results()), coverage=Coverage(0.0024, 0.3))
    text = " ".join(printed(screen(run), 200).split())
    assert "0.24 % of the MACs and 30 % of the weights can switch" in text
    assert "no saving is claimed: only 0.24 %" in text
    assert "withheld" in text
