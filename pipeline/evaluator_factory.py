"""The evaluator of a run: in this process, or with worker processes that build the same one again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from envs.evaluators.evaluator import Outcome
from envs.evaluators.parallel_evaluator import ParallelEvaluator
from envs.evaluators.plan_evaluator import PlanEvaluator
from pipeline.preparation import build_model, build_workload, use_threads
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
    """Builds a run's evaluator again in another process; small enough to be sent there.

    Attributes:
        load: Loads the workload.
        precisions: The precisions that the run offers.
        profile_json: The run's profile.
        calibration_json: The run's calibration.
        model_fingerprint: The model that the settings must yield.
        search_fingerprint: The samples that they must yield.
        threads: torch's intra-op threads, as many as in the run: results are to be the same.
    """

    load: Callable[[], Workload]
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
        workload = build_workload(self.load)
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


def build_evaluator(
    model: SwitchableModel,
    workload: Workload,
    profile: ModelProfile,
    known: Mapping[PrecisionPlan, Outcome],
    *,
    load: Callable[[], Workload],
    workers: int,
    threads: int,
) -> PlanEvaluator:
    """The evaluator on ``search``, with worker processes if there are to be several.

    Args:
        model: The workload's model, calibrated.
        workload: The workload.
        profile: Its profile.
        known: Outcomes from an earlier run.
        load: Loads the workload again in a worker; can be pickled.
        workers: Processes that evaluate plans.
        threads: torch's threads in each.
    """
    parts, labels = split_batches(workload, "search")
    if workers == 1:
        return PlanEvaluator(model, profile, parts, labels, known=known)
    factory = EvaluatorFactory(
        load=load,
        precisions=tuple(precision.name for precision in model.precisions),
        profile_json=profile.to_json(),
        calibration_json=calibration_to_json(model.calibration),
        model_fingerprint=model_fingerprint(workload.model),
        search_fingerprint=workload.splits["search"].fingerprint(),
        threads=threads,
    )
    return ParallelEvaluator(model, profile, parts, labels, factory=factory, workers=workers, known=known)


@contextmanager
def workers_ended(evaluator: PlanEvaluator) -> Iterator[None]:
    """End the evaluator's worker processes, if it has any, when the context is left."""
    try:
        yield
    finally:
        if isinstance(evaluator, ParallelEvaluator):
            evaluator.close()
