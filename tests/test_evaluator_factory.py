"""The evaluator of a run, and the same one built again for a worker process."""

from __future__ import annotations

import pytest
import tiny
import torch
from worker_pools import recorded_pools

from envs.evaluators.parallel_evaluator import ParallelEvaluator
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.evaluator_factory import EvaluatorFactory, build_evaluator, workers_ended
from pipeline.factory import Factory
from pipeline.training_settings import require_workers
from wattbit.errors import ConfigError
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from workloads.workload import SPLITS, Split, Workload


def load(seed: int) -> Workload:
    """The tiny network on samples that depend on ``seed``."""
    samples = {name: tiny.images(60, seed + index) for index, name in enumerate(SPLITS)}
    splits = {name: Split(x, torch.arange(len(x)) % tiny.CLASSES) for name, x in samples.items()}
    classes = tuple("abcde")
    return Workload("tiny", tiny.conv_model(), splits, classes, batch_size=25, description="for a test")


def evaluator_of(
    model: SwitchableModel, workload: Workload, *, workers: int = 2, seed: int = 7
) -> PlanEvaluator:
    again = Factory(load, {"seed": seed})
    return build_evaluator(model, workload, tiny.profile(), {}, load=again, workers=workers, threads=1)


def test_a_worker_s_evaluator_gives_the_outcomes_of_the_run_s_own() -> None:
    workload = load(7)
    with SwitchableModel(workload.model, tiny.images(2), tiny.PRECISIONS) as model:
        model.calibrate([workload.splits["calibrate"].inputs])
        with recorded_pools() as pools:
            evaluator = evaluator_of(model, workload)
        assert isinstance(evaluator, ParallelEvaluator)
        [pool] = pools
        assert isinstance(pool.factory, EvaluatorFactory)
        again = pool.factory()
        for name in tiny.PRECISIONS:
            plan = PrecisionPlan.uniform(model.layer_names, name)
            assert again.evaluate(plan) == evaluator.evaluate(plan)
        assert again.reference_accuracy == evaluator.reference_accuracy
        with workers_ended(evaluator):
            assert not pool.closed
        assert pool.closed


def test_a_workload_that_is_another_one_each_time_is_refused() -> None:
    workload = load(7)
    with SwitchableModel(workload.model, tiny.images(2), tiny.PRECISIONS) as model:
        model.calibrate([workload.splits["calibrate"].inputs])
        with recorded_pools() as pools:
            evaluator = evaluator_of(model, workload, seed=8)
        assert isinstance(evaluator, ParallelEvaluator)
        with pytest.raises(ConfigError, match=r"another model or other samples .* use workers=1"):
            pools[0].factory()


def test_one_process_is_the_plain_evaluator() -> None:
    workload = load(7)
    with SwitchableModel(workload.model, tiny.images(2), ["fp32"]) as model:
        evaluator = evaluator_of(model, workload, workers=1)
        assert type(evaluator) is PlanEvaluator
        with workers_ended(evaluator):
            pass


@pytest.mark.parametrize("trim_padding", [False, True])
def test_sentences_run_without_padding_where_the_workload_says_so(
    trim_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = (torch.arange(9) < torch.tensor([2, 9, 3, 1] * 5)[:, None]).long()
    labels = torch.arange(20) % tiny.CLASSES
    splits = dict.fromkeys(SPLITS, Split({"input_ids": mask, "attention_mask": mask}, labels))
    classes, made = tuple("abcde"), []
    workload = Workload(
        "text", tiny.conv_model(), splits, classes, batch_size=10, description="", trim_padding=trim_padding
    )
    monkeypatch.setattr(
        "pipeline.evaluator_factory.PlanEvaluator", lambda *args, **more: made.append(args[2:])
    )
    with SwitchableModel(workload.model, tiny.images(2), ["fp32"]) as model:
        evaluator_of(model, workload, workers=1)
    [(parts, found)] = made
    assert [part["input_ids"].shape for part in parts] == (
        [(10, 2), (10, 9)] if trim_padding else [(10, 9)] * 2
    )
    assert sorted(found.tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two", True, None])
def test_a_number_of_workers_that_makes_no_sense_is_refused(workers: object) -> None:
    with pytest.raises(ConfigError, match=r"workers is .*, must be a whole number, at least 1"):
        require_workers(workers)


def test_workers_are_a_whole_number_from_1_on() -> None:
    require_workers(3)
