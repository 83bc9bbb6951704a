"""A tensor that is as long as the batch by chance is not cut when a model is attached."""

from __future__ import annotations

import tiny
import torch
from attached import uniform
from runtimes import TOLERANCE_PP, X
from torch import Tensor, nn

from wattbit.execution.prefix_sharing import PrefixSharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.attach import attach
from wattbit.serving.controller import PrecisionController
from wattbit.serving.runtime import PrecisionRuntime


class Mixing(nn.Module):
    """Mixes six tokens with a mask of shape (6, 6) that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = self.embed(x)
        logits: Tensor = self.head((mask @ tokens + tokens).relu().mean(1))
        return logits


def test_a_mask_as_long_as_the_batch_is_not_cut_to_try_sharing() -> None:
    inputs = {"x": torch.randn(6, 6, 4), "mask": torch.rand(6, 6)}
    with SwitchableModel(Mixing().eval(), inputs, ["int8", "bf16"]) as model:
        model.calibrate([inputs])
        sharing = PrefixSharing(model, inputs)
        assert sharing.refusal is None
        plans = [uniform(model, name) for name in ("fp32", "bf16", "int8")]
        for plan, logits in sharing.logits([inputs], plans):
            assert torch.equal(logits, model.logits([inputs], plan))


class WithGate(tiny.ConvNet):
    """Multiplies its images by a gate of as many rows as they have, (8, 8)."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is not None and gate.shape != (8, 8):
            raise RuntimeError(f"a gate of shape {tuple(gate.shape)}")
        return super().forward(x if gate is None else x * gate)


def with_gate() -> WithGate:
    model = WithGate()
    model.load_state_dict(tiny.conv_model().state_dict())
    return model.eval()


@torch.inference_mode()
def test_the_runtime_attaches_on_the_whole_first_batch() -> None:
    gate = torch.ones(8, 8)
    controller = PrecisionController(tiny.bundle())
    with PrecisionRuntime(controller, with_gate(), tolerance_pp=TOLERANCE_PP) as runtime:
        found = runtime(X[:8], gate=gate)
        assert runtime.stats.rollbacks == 0
        assert runtime.plan != controller.reference_plan
        assert torch.equal(found, runtime(X[:8], gate=gate))
    model = with_gate()
    with attach(tiny.bundle(), model, (X[:8], gate), runtime.plan) as switchable:
        assert torch.equal(found, switchable.run((X[:8], gate), runtime.decision.plan))
