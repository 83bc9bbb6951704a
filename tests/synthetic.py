"""A model that needs no torch: a made-up profile, and an evaluator whose layers interact in a known way."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from agents.archive import Journal
from agents.search_comparison import SearchComparison
from agents.stopping import StopRule
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.evaluators.remembering_evaluator import RememberingEvaluator
from envs.gate import SearchGate
from pipeline.split_evaluator import SplitEvaluator
from wattbit.execution.switchable import SwitchableModel
from wattbit.judging.noninferiority import PairedCounts
from wattbit.model_inputs import Inputs, batches, num_samples
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision
from wattbit.profile import LayerKind, LayerProfile, LayerShape, ModelProfile, PrecisionCost
from workloads.workload import Split

PRECISIONS = ("fp32", "bf16", "int8", "int4", "int2")
ALL = (
    "fp32", "bf16", "fp16", "fp8_e4m3", "int8", "int6", "int4", "int3", "int2", "mxfp4", "nvfp4",
)  # fmt: skip
KINDS: tuple[LayerKind, ...] = ("conv2d", "depthwise_conv2d", "linear")


def shape(index: int, layers: int, rng: np.random.Generator) -> LayerShape:
    """A plausible layer."""
    channels = int(rng.integers(4, 64))
    return LayerShape(
        name=f"block.{index}",
        kind=KINDS[index % 3],
        macs=int(rng.integers(10_000, 1_000_000)),
        weight_elements=int(rng.integers(100, 10_000)),
        input_elements=int(rng.integers(100, 5_000)),
        output_elements=int(rng.integers(100, 5_000)),
        in_channels=channels,
        out_channels=channels * 2,
        kernel_size=3,
        stride=1,
        groups=1,
        depth=index / max(1, layers - 1),
    )


def cost(energy_j: float, sensitivity: float, memory_bytes: int = 1000) -> PrecisionCost:
    """A cost of which only energy and sensitivity matter."""
    return PrecisionCost(
        energy_j=energy_j,
        energy_rel_std=None,
        latency_ms=energy_j * 1e3,
        memory_bytes=memory_bytes,
        sensitivity=sensitivity,
        sensitivity_std=0.1 * sensitivity,
        native=False,
    )


def make_profile(
    layers: int = 6,
    names: Sequence[str] = PRECISIONS,
    *,
    seed: int = 0,
    conversions: bool = True,
    missing: Mapping[int, Sequence[str]] | None = None,
    other_energy_j: float | None = None,
) -> ModelProfile:
    """A profile in which narrower is cheaper and more sensitive, by amounts that differ from layer to layer.

    Args:
        layers: Number of layers.
        names: Precisions, the reference first.
        seed: Seeds the amounts.
        conversions: True if passing from one precision to another costs energy.
        missing: Precisions that a layer does not support, by its index.
        other_energy_j: Energy of what cannot switch.
    """
    rng = np.random.default_rng(seed)
    profiles = []
    for index in range(layers):
        layer_shape = shape(index, layers, rng)
        scale = 10.0 ** rng.uniform(-4.5, -2.5)
        costs = {}
        for name in names:
            bits = precision(name).stored_weight_bits
            share = (bits / 32.0) ** rng.uniform(0.8, 1.2)
            sensitivity = 0.0 if name == names[0] else scale * (32.0 / bits) ** rng.uniform(0.8, 1.4)
            memory_bytes = math.ceil(layer_shape.weight_elements * bits / 8)
            costs[name] = cost(1e-12 * layer_shape.macs * share, sensitivity, memory_bytes)
        for name in (missing or {}).get(index, ()):
            del costs[name]
        profiles.append(LayerProfile(layer_shape, costs))
    return ModelProfile(
        layers=tuple(profiles),
        precisions=tuple(names),
        provenance="modelled",
        device="made up",
        conversion_j=conversion_table(names) if conversions else {},
        other_energy_j=other_energy_j,
        other_latency_ms=None,
    )


def conversion_table(names: Sequence[str]) -> dict[str, float]:
    """Energy per activation to convert, joules: more where the formats differ more."""
    bits = {name: precision(name).stored_activation_bits for name in names}
    return {
        f"{a}->{b}": 1e-12 * (1.0 + abs(bits[a] - bits[b]) / 8.0) for a, b in product(names, names) if a != b
    }


def all_plans(profile: ModelProfile) -> Iterator[PrecisionPlan]:
    """Every plan of a small profile."""
    choices = [profile.supported(index) for index in range(len(profile.layers))]
    for names in product(*choices):
        yield PrecisionPlan(dict(zip(profile.layer_names, names, strict=True)))


def make_outcome(
    plan: PrecisionPlan,
    energy_j: float,
    *,
    lost: int = 0,
    gained: int = 0,
    divergence: float = 0.0,
    samples: int = 400,
) -> Outcome:
    """An outcome with these figures."""
    return Outcome(plan, energy_j, energy_j * 1e3, PairedCounts(samples, lost, gained), divergence)


class FormulaEvaluator(RememberingEvaluator):
    """Evaluates plans by formula: sensitivities add up, but neighbours interact.

    Two neighbours of equal family cancel half of their errors; two neighbours at the narrowest precision
    double theirs. An additive model sees neither, so a search that runs plans can beat it.
    """

    def __init__(
        self,
        profile: ModelProfile,
        *,
        samples: int = 1000,
        pp_per_nat: float = 60.0,
        known: Iterable[Outcome] = (),
    ) -> None:
        super().__init__(profile, {outcome.plan: outcome for outcome in known})
        self._samples = samples
        self._pp_per_nat = pp_per_nat
        self.ran: list[PrecisionPlan] = []
        self.before_run: Callable[[PrecisionPlan], None] = lambda plan: None

    def _run(self, plans: Sequence[PrecisionPlan]) -> Iterator[Outcome]:
        for plan in plans:
            self.before_run(plan)
            self.ran.append(plan)
            yield self._outcome(self.profile.require_plan(plan))

    def divergence(self, plan: PrecisionPlan) -> float:
        """The divergence of ``plan``, interactions included, nats."""
        own = [layer.costs[plan[layer.name]].sensitivity for layer in self._profile.layers]
        total = sum(own)
        names = list(plan.values())
        narrowest = self._profile.precisions[-1]
        for (a, b), (name_a, name_b) in zip(pairwise(own), pairwise(names), strict=True):
            if name_a == name_b == narrowest:
                total += a + b
            elif precision(name_a).family == precision(name_b).family:
                total -= 0.5 * min(a, b)
        return total

    def _outcome(self, plan: PrecisionPlan) -> Outcome:
        divergence = self.divergence(plan)
        lost = min(self._samples, round(self._samples * self._pp_per_nat * divergence / 100.0))
        return Outcome(
            plan=plan,
            energy_j=self._profile.plan_energy_j(plan),
            latency_ms=self._profile.plan_latency_ms(plan),
            counts=PairedCounts(self._samples, lost, 0),
            divergence=divergence,
        )


class StubModel:
    """Answers like a switchable model of two classes: right but for the first ``lost(plan)`` samples."""

    def __init__(self, profile: ModelProfile, lost: Callable[[PrecisionPlan], int]) -> None:
        self.reference_plan = profile.reference_plan
        self.model, self.layer_names = nn.Identity(), profile.layer_names
        self.lost = lost
        self.asked: list[PrecisionPlan] = []
        self.lock = threading.Lock()  # real ones have some, which nothing can copy

    def logits(self, batches: Iterable[Inputs], plan: PrecisionPlan) -> Tensor:
        """Logits (samples, 2); class 0 is right."""
        self.asked.append(plan)
        logits = torch.zeros(sum(num_samples(batch) for batch in batches), 2)
        logits[:, 0] = 1.0
        logits[: self.lost(plan), 1] = 2.0
        return logits

    def as_model(self) -> SwitchableModel:
        """This stub, for a type checker."""
        return cast(SwitchableModel, self)

    def held_out(self, samples: int) -> SplitEvaluator:
        """The stub on a split of ``samples``."""
        split = make_split(samples)
        return SplitEvaluator(self.as_model(), list(batches(split.inputs, 64)), split.labels)


def make_split(samples: int) -> Split:
    """Samples that are all of class 0."""
    return Split(torch.zeros(samples, 1), torch.zeros(samples, dtype=torch.int64))


class Comparisons:
    """Makes comparisons in a folder, each going on from the journal that the one before left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journals: list[Journal] = []

    def make(self, evaluator: Evaluator, stop: StopRule | None = None, **arguments: Any) -> SearchComparison:
        """A comparison on ``evaluator``, with what the journal holds."""
        self.close()
        journal = Journal(self.folder / "archive.jsonl")
        self._journals.append(journal)
        comparison = SearchComparison(
            evaluator=evaluator,
            reference=evaluator.evaluate(evaluator.profile.reference_plan),
            gate=SearchGate(),
            tolerances_pp=(0.5, 1.0, 2.0, 4.0),
            stop=stop or StopRule(),
            journal=journal,
            listener=lambda *report: None,
            **arguments,
        )
        comparison.restore(self.entries(evaluator.profile))
        return comparison

    def entries(self, profile: ModelProfile) -> list[tuple[Outcome, str]]:
        """What the journal holds."""
        return Journal(self.folder / "archive.jsonl").read(profile)

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals:
            journal.close()
