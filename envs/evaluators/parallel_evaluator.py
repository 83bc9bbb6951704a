"""Running plans in worker processes of this machine, with the outcomes of a serial run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from torch import Tensor

from envs.evaluators.evaluator import Outcome
from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.evaluators.workers import EvaluatorMaker, WorkerPool
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class ParallelEvaluator(PlanEvaluator):
    """A `PlanEvaluator` that runs lists of plans in worker processes.

    A list is run in the order of the plans' precisions, in equal parts, one a worker: neighbours have their
    first layers in common, which an evaluator need run only once. A single plan is run in this process, and
    whatever was run is remembered here. Used as a context manager it ends its workers, and nobody else's;
    after that it runs everything in this process.

    Args:
        model: As for `PlanEvaluator`.
        profile: As for `PlanEvaluator`.
        inputs: As for `PlanEvaluator`.
        labels: As for `PlanEvaluator`.
        factory: Builds the same evaluator in a worker.
        workers: Number of worker processes, started when the first list comes.
        batch_size: As for `PlanEvaluator`.
        known: As for `PlanEvaluator`.

    Raises:
        ConfigError: If there are fewer than 2 workers.
        DataError: As `PlanEvaluator` does.
        ModelError: As `PlanEvaluator` does.
    """

    def __init__(
        self,
        model: SwitchableModel,
        profile: ModelProfile,
        inputs: Inputs | list[Inputs],
        labels: Tensor,
        *,
        factory: EvaluatorMaker,
        workers: int,
        batch_size: int = 256,
        known: Mapping[PrecisionPlan, Outcome] | None = None,
    ) -> None:
        super().__init__(model, profile, inputs, labels, batch_size=batch_size, known=known)
        self._pool: WorkerPool | None = WorkerPool(factory, workers)

    def close(self) -> None:
        """End the workers; from now on everything runs in this process."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, plans: Sequence[PrecisionPlan]) -> Iterable[Outcome]:
        if self._pool is None or len(plans) == 1:
            return super()._run(plans)
        required = [self.profile.require_plan(plan) for plan in plans]
        return self._pool.evaluate(sorted(required, key=lambda plan: tuple(plan.values())))
