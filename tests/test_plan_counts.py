"""Counting what plans lose: the figures of single plans, kept on disk and found again only where they fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, conv_model, device_model, images
from torch import Tensor

from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.grouping import layer_plan
from scripts.exhaustive_tables import plan_counts
from scripts.exhaustive_tables.plan_counts import PlanCounter, digits
from scripts.exhaustive_tables.plan_tree import PlanTree
from wattbit.errors import ModelError
from wattbit.execution.switchable import SwitchableModel
from wattbit.profiling.layer_costs import ModelledCost
from wattbit.profiling.profiler import measure_profile
from workloads.workload import Split

NAMES = ("fp32", "int8", "int3")
GROUPS = {"a": ["stem"], "b": ["depthwise", "pointwise"], "c": ["head"]}


def split(samples: int = 50) -> Split:
    labels = torch.randint(0, CLASSES, (samples,), generator=torch.Generator().manual_seed(0))
    return Split(images(samples), labels)


def attached() -> SwitchableModel:
    model = SwitchableModel(conv_model(), images(2), NAMES, native=False)
    model.calibrate([images(40)])
    return model


def test_counts_are_those_of_the_evaluator_whatever_the_batches(tmp_path: Path) -> None:
    model, data = attached(), split()
    counts = PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 20)
    profile = measure_profile(model, images(8), ModelledCost(device_model(), model.shapes))
    evaluator = PlanEvaluator(model, profile, data.inputs, data.labels)
    assert counts.samples == 50
    assert counts.reference_right == round(50 * evaluator.reference_accuracy)
    for row in range(27):
        names = [NAMES[digit] for digit in digits(row, 3, 3)]
        plan = layer_plan(GROUPS, dict(zip(GROUPS, names, strict=True)))
        outcome = evaluator.evaluate(plan)
        assert counts.reference_only[row] == outcome.counts.reference_only
        assert counts.plan_only[row] == outcome.counts.plan_only
        assert counts.divergence[row] / 50 == pytest.approx(outcome.divergence, rel=1e-3, abs=1e-7)


def test_an_interrupted_count_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = attached(), split()
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 20, interrupt)
    assert told == [(20, 50), (40, 50)]
    walks = []
    walk = PlanTree.logits

    def counted(tree: PlanTree, batch: Tensor) -> Iterator[Tensor]:
        walks.append(len(batch))
        return walk(tree, batch)

    monkeypatch.setattr(PlanTree, "logits", counted)
    counts = PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 20)
    assert walks == [10]
    whole = PlanCounter(model, GROUPS, NAMES, tmp_path / "other").count(data, 20)
    assert np.array_equal(counts.reference_only, whole.reference_only)
    assert np.array_equal(counts.divergence, whole.divergence)


def test_kept_counts_of_another_model_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    model, data = attached(), split(20)
    first = PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 20)
    (kept,) = tmp_path.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    again = PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 20)
    assert np.array_equal(first.plan_only, again.plan_only)
    model.detach()
    other = SwitchableModel(conv_model(), images(2), NAMES, native=False)
    other.calibrate([0.5 * images(40)])
    PlanCounter(other, GROUPS, NAMES, tmp_path).count(data, 20)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_plan_that_answers_otherwise_by_itself_stops_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = attached(), split(10)
    walk = PlanTree.logits
    monkeypatch.setattr(PlanTree, "logits", lambda tree, batch: (y + 1e-3 for y in walk(tree, batch)))
    with pytest.raises(ModelError, match="answers differently by itself"):
        PlanCounter(model, GROUPS, NAMES, tmp_path).count(data, 10)
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_no_single_tensor_are_refused(tmp_path: Path) -> None:
    data = split(4)
    pair = Split((data.inputs, data.inputs), data.labels)
    with pytest.raises(ModelError, match="not a single tensor"):
        PlanCounter(attached(), GROUPS, NAMES, tmp_path).count(pair, 4)


def test_outputs_that_are_not_finite_are_wrong_and_far_off() -> None:
    labels = torch.tensor([0, 1])
    answers = torch.eye(2)
    broken: Tensor = torch.stack([answers, torch.full((2, 2), float("nan"))])
    lost, gained, nats = plan_counts.ReferenceAnswers(answers, labels).compare(broken)
    assert lost.tolist() == [0, 2]
    assert gained.tolist() == [0, 0]
    assert nats.tolist() == [0.0, 200.0]


def test_digits_are_those_of_the_plans_in_a_table() -> None:
    assert digits(0, 4, 3) == [0, 0, 0]
    assert digits(27, 4, 3) == [1, 2, 3]
