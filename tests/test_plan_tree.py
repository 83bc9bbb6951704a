"""The walk through all plans: the same answers as each plan by itself, and nothing run twice for nothing."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from tiny import conv_model, images, linear_model, tokens
from torch import Tensor, nn

from envs.grouping import Groups, layer_plan
from scripts.exhaustive_tables.plan_tree import PlanTree
from scripts.exhaustive_tables.table_recipes import RECIPES
from wattbit.errors import ConfigError, ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from workloads.fashion_mnist import FashionNet
from workloads.fashion_transformer import FashionTransformer
from workloads.network_blocks import ResidualBlock

NAMES = ("fp16", "int8", "int3")


class Residual(nn.Module):
    """A stem, a block whose shortcut is a convolution, and a head: a shortcut reads past a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = ResidualBlock(4, 6, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x).relu()).mean((2, 3)))
        return logits


class Branching(nn.Module):
    """What it runs depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x) if x.sum() > 0 else self.layer(-x)
        return logits


def residual() -> Residual:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Residual().eval()


MODELS = {
    "conv": (conv_model, images, {"a": ["stem"], "b": ["depthwise", "pointwise"], "c": ["head"]}),
    "attention": (
        linear_model,
        tokens,
        {"a": ["embed"], "b": ["query", "key", "value"], "c": ["widen", "narrow"], "d": ["head"]},
    ),
    "residual": (
        residual,
        images,
        {"a": ["stem"], "b": ["block.conv1"], "c": ["block.conv2", "block.shortcut"], "d": ["head"]},
    ),
}


def attached(name: str) -> tuple[SwitchableModel, Tensor, Groups]:
    build, inputs, groups = MODELS[name]
    x = inputs(20)
    model = SwitchableModel(build(), x[:2], NAMES, native=False)
    model.calibrate([x])
    return model, x, groups


@pytest.mark.parametrize("name", MODELS)
def test_every_plan_answers_bit_for_bit_as_it_does_by_itself(name: str) -> None:
    model, x, groups = attached(name)
    walked = list(PlanTree(model, groups, NAMES).logits(x))
    chosen = list(product(NAMES, repeat=len(groups)))
    assert len(walked) == len(chosen)
    for logits, names in zip(walked, chosen, strict=True):
        plan = layer_plan(groups, dict(zip(groups, names, strict=True)))
        assert torch.equal(logits, model.logits([x], plan))


def test_what_plans_have_in_common_runs_once() -> None:
    model, x, groups = attached("residual")
    calls: Counter[str] = Counter()
    for name, module in model.model.named_modules():
        if name in model.layer_names:
            module.register_forward_pre_hook(lambda module, args, name=name: calls.update([name]))
    list(PlanTree(model, groups, NAMES).logits(x))
    # A shortcut reads what the stem wrote: it runs for each precision of the stem and of its own.
    assert calls == {
        "stem": 3, "block.conv1": 9, "block.conv2": 27, "block.shortcut": 9, "head": 81,
    }  # fmt: skip


def test_groups_that_do_not_fit_and_models_that_branch_are_refused() -> None:
    model, _, groups = attached("conv")
    with pytest.raises(ConfigError, match="list layers as they run"):
        PlanTree(model, dict(reversed(list(groups.items()))), NAMES)
    x = tokens(4)[:, 0]
    with pytest.raises(ModelError, match="cannot be traced"):
        PlanTree(SwitchableModel(Branching(), x, NAMES, native=False), {"a": ["layer"]}, NAMES)


@pytest.mark.parametrize(
    ("table", "build"), [("fashion_resnet8", FashionNet), ("fashion_transformer", FashionTransformer)]
)
def test_the_tables_networks_have_eight_groups_and_can_be_walked(table: str, build: type[nn.Module]) -> None:
    groups, x = RECIPES[table].groups, torch.randn(3, 1, 28, 28)
    assert len(groups) == 8
    with SwitchableModel(build().eval(), x, ["int8"], native=False) as model:
        model.calibrate([x])
        first = next(PlanTree(model, groups, ["int8", "fp32"]).logits(x))
        uniform = PrecisionPlan.uniform(model.layer_names, "int8")
        assert torch.equal(first, model.logits([x], uniform))
