"""The evaluator of a run: in this process, or with worker processes that build the same one again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from envs.evaluators.evaluator import Outcome
from envs.evaluators.parallel_evaluator import ParallelEvaluator
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.build import build_model, build_workload, plain, use_threads
from wattbit.calibration import calibration_from_json, calibration_to_json
from wattbit.errors import ConfigError
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.storage.fingerprint import model_fingerprint
from workloads.padding import split_batches
from workloads.workload import Workload


@dataclass(frozen=True, slots=True)
class EvaluatorFactory:
    """Builds a run's evaluator again in another process; plain values only, so that it can be sent there.

    Attributes:
        workload: The workload's settings.
        precisions: The precisions that the run offers.
        profile_json: The run's profile.
        calibration_json: The run's calibration.
        model_fingerprint: The model that the settings must yield.
        search_fingerprint: The samples that they must yield.
        threads: torch's intra-op threads, as many as in the run: results are to be the same.
    """

    workload: Mapping[str, Any]
    precisions: tuple[str, ...]
    profile_json: str
    calibration_json: str
    model_fingerprint: str
    search_fingerprint: str
    threads: int

    def __call__(self) -> PlanEvaluator:
        """Build it.

        Raises:
            ConfigError: If the workload is another one each time it is loaded.
        """
        use_threads(self.threads)
        workload = build_workload(OmegaConf.create(dict(self.workload)))
        split = workload.splits["search"]
        found = model_fingerprint(workload.model), split.fingerprint()
        if found != (self.model_fingerprint, self.search_fingerprint):
            raise ConfigError(
                f"workload {workload.name} is another model or other samples when it is loaded again; seed "
                "everything random in it, or use workers=1"
            )
        model = build_model(workload, list(self.precisions))
        model.load_calibration(calibration_from_json(self.calibration_json))
        return PlanEvaluator(
            model, ModelProfile.from_json(self.profile_json), *split_batches(workload, "search")
        )


def require_workers(workers: Any) -> int:
    """Check the number of processes that evaluate plans.

    Raises:
        ConfigError: If it is no whole number from 1 on.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers is {workers!r}, must be a whole number, at least 1")
    return workers


def build_evaluator(
    config: DictConfig,
    model: SwitchableModel,
    workload: Workload,
    profile: ModelProfile,
    known: Mapping[PrecisionPlan, Outcome],
) -> PlanEvaluator:
    """The evaluator on ``search``, with ``config.workers`` processes.

    Args:
        config: The run's settings.
        model: The workload's model, calibrated.
        workload: The workload.
        profile: Its profile.
        known: Outcomes from an earlier run.
    """
    parts, labels = split_batches(workload, "search")
    if config.workers == 1:
        return PlanEvaluator(model, profile, parts, labels, known=known)
    factory = EvaluatorFactory(
        workload=plain(config.workload),
        precisions=tuple(precision.name for precision in model.precisions),
        profile_json=profile.to_json(),
        calibration_json=calibration_to_json(model.calibration),
        model_fingerprint=model_fingerprint(workload.model),
        search_fingerprint=workload.splits["search"].fingerprint(),
        threads=config.threads,
    )
    return ParallelEvaluator(
        model, profile, parts, labels, factory=factory, workers=config.workers, known=known
    )


@contextmanager
def workers_ended(evaluator: PlanEvaluator) -> Iterator[None]:
    """End the evaluator's worker processes, if it has any, when the context is left."""
    try:
        yield
    finally:
        if isinstance(evaluator, ParallelEvaluator):
            evaluator.close()
