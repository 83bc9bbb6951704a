"""Tiny models, and what is made of them once: a profile and a bundle, as real as those of a long run."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from wattbit.calibration import calibration_to_json
from wattbit.energy.device_model import DeviceModel
from wattbit.execution.switchable import SwitchableModel
from wattbit.features import FeatureEncoder
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import Certificate
from wattbit.judging.judgement import CandidatePlan, Judgement, certify_sequence
from wattbit.plan import PrecisionPlan
from wattbit.policy import MLPPolicy
from wattbit.profile import ModelProfile
from wattbit.profiling.layer_costs import ModelledCost
from wattbit.profiling.profiler import measure_profile
from wattbit.serving.bundle import BundledPlan, ControllerBundle
from wattbit.storage.fingerprint import model_fingerprint, tensors_sha256

CLASSES = 5
PRECISIONS = ("fp32", "bf16", "int8", "int4", "mxfp4")
DEPLOYED = ((2.0, "bf16"), (10.0, "int8"))
"""Tolerance in percentage points, and the uniform plan that the tiny bundle has certified for it."""

_CONF = Path(__file__).parents[1] / "conf"


class ConvNet(nn.Module):
    """A convolution, a depthwise one and a pointwise one, two with BatchNorm, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (samples, 1, 8, 8) to logits (samples, CLASSES)."""
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = torch.relu(self.depthwise_bn(self.depthwise(x)))
        x = torch.relu(self.pointwise(x))
        logits: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return logits


class TokenNet(nn.Module):
    """One block of a transformer, made of linear layers: attention and a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.value = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.widen = nn.Linear(16, 32)
        self.narrow = nn.Linear(32, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (samples, tokens, 6) to logits (samples, CLASSES)."""
        x = self.embed(x)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4.0
        x = x + scores.softmax(2) @ self.value(x)
        x = x + self.narrow(torch.relu(self.widen(self.norm(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def conv_model() -> ConvNet:
    """The same `ConvNet` at every call, in eval mode, with BatchNorms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ConvNet()
        for norm in (model.stem_bn, model.depthwise_bn):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.3, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
        nn.init.normal_(model.head.weight, std=3.0)
    return model.eval()


def linear_model() -> TokenNet:
    """The same `TokenNet` at every call, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TokenNet().eval()


def images(samples: int, seed: int = 3) -> Tensor:
    """Inputs of `ConvNet`, (samples, 1, 8, 8)."""
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(samples: int, seed: int = 4) -> Tensor:
    """Inputs of `TokenNet`, (samples, 3, 6)."""
    return torch.randn(samples, 3, 6, generator=torch.Generator().manual_seed(seed))


@cache
def device_model() -> DeviceModel:
    """The device that the configuration ships as ``edge_7nm``."""
    table = (_CONF / "energy" / "device" / "edge_7nm.yaml").read_text(encoding="utf-8")
    return DeviceModel.from_table(yaml.safe_load(table))


@cache
def profile() -> ModelProfile:
    """The profile of `conv_model` on `device_model`."""
    return bundle().profile


@cache
def bundle() -> ControllerBundle:
    """A bundle for `conv_model`: uniform plans, certified against the reference's own predictions."""
    net, x = conv_model(), images(2048)
    with SwitchableModel(net, x[:2], PRECISIONS) as model:
        model.calibrate([x[:128]])
        measured = measure_profile(model, x[:64], ModelledCost(device_model(), model.shapes))
        calibration = calibration_to_json(model.calibration)
        labels = model.logits([x], model.reference_plan).argmax(1)
        deployed = []
        for tolerance_pp, name in DEPLOYED:
            plan = PrecisionPlan.uniform(model.layer_names, name)
            agrees = (model.logits([x], plan).argmax(1) == labels).numpy()
            deployed.append(_certified(measured, plan, agrees, tolerance_pp, labels.numpy()))
    fingerprint = model_fingerprint(net)
    data = tensors_sha256([("inputs", x), ("labels", labels)])
    return ControllerBundle(
        plans=tuple(plan for plan, _ in deployed),
        compared=tuple(plan for plan, _ in deployed),
        profile=measured,
        calibration_json=calibration,
        certificates=tuple(
            Certificate(Guardrail(plan.tolerance_pp), judgements, fingerprint, data, len(x))
            for plan, judgements in deployed
        ),
        policy=random_policy(measured),
        model_fingerprint=fingerprint,
        workload={"name": "tiny"},
        versions={"wattbit": "0"},
        created="2026-01-31T09:00:00+00:00",
    )


def random_policy(profile: ModelProfile, hidden: int = 8, seed: int = 0) -> MLPPolicy:
    """A policy for ``profile`` with random weights."""
    rng = np.random.default_rng(seed)
    size = FeatureEncoder(profile, 1.0).size
    widths = [size, hidden, len(profile.precisions)]
    shapes = [(after, before) for before, after in pairwise(widths)]
    return MLPPolicy(
        weights=tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes),
        biases=tuple(rng.normal(size=shape[0]).astype(np.float32) for shape in shapes),
        precisions=profile.precisions,
        pp_per_nat=20.0,
    )


def _certified(
    profile: ModelProfile,
    plan: PrecisionPlan,
    agrees: NDArray[np.bool_],
    tolerance_pp: float,
    labels: NDArray[np.int64],
) -> tuple[BundledPlan, dict[str, Judgement]]:
    judgements = certify_sequence(
        np.ones_like(agrees), [CandidatePlan(plan.plan_id, agrees)], labels, Guardrail(tolerance_pp)
    )
    energy_j = profile.plan_energy_j(plan)
    record = BundledPlan(
        plan=plan,
        tolerance_pp=tolerance_pp,
        method=f"uniform_{next(iter(plan.values()))}",
        energy_j=energy_j,
        saving=profile.saving(energy_j),
        latency_ms=profile.plan_latency_ms(plan),
        drop_pp=judgements[plan.plan_id].drop_pp,
        verdict=judgements[plan.plan_id].verdict,
        provenance=profile.provenance,
    )
    return record, judgements
