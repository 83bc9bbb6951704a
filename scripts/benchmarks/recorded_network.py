"""A workload's network as a search problem, with every outcome kept on disk.

A plan's outcome does not depend on the search that asks for it, so compared searches share outcomes, across
processes and runs. Each search is still charged for every plan it asks for (`ArchivingEvaluator`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from agents.archive import Journal
from envs.evaluators.evaluator import Outcome
from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.evaluators.remembering_evaluator import RememberingEvaluator
from envs.gate import SearchGate
from pipeline.preparation import build_model, build_workload, profile_model, use_threads
from pipeline.settings import compose_training
from pipeline.training_settings import TrainingSettings
from wattbit.calibration import calibration_from_json, calibration_to_json
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.fingerprint import model_fingerprint
from workloads.cache import cache_key
from workloads.padding import split_batches
from workloads.workload import Workload

_PROFILE, _CALIBRATION, _OUTCOMES = "profile.json", "calibration.json", "outcomes-*.jsonl"


@dataclass(frozen=True, slots=True)
class ProblemSettings:
    """How a network becomes a problem.

    Attributes:
        overrides: Settings of train.py.
        samples: How many samples of ``search`` plans run on, the first ones.
    """

    overrides: tuple[str, ...]
    samples: int


NETWORKS: Mapping[str, ProblemSettings] = MappingProxyType(
    {"sentiment": ProblemSettings(("workload=sentiment", "precisions=integer", "energy=modelled"), 400)}
)
"""Problem -> recipe. A plan takes seconds here, so these are run only where they are asked for."""


class RecordedNetwork(RememberingEvaluator):
    """An evaluator that recalls outcomes from any process, and runs the model for new plans only.

    Args:
        profile: The model's profile.
        folder: Where outcomes are kept; each process writes a file of its own.
        build: Makes the evaluator that runs plans; called at the first new plan.
    """

    def __init__(self, profile: ModelProfile, folder: Path, build: Callable[[], PlanEvaluator]) -> None:
        super().__init__(profile, _recorded(folder, profile))
        self._folder = folder
        self._build = build
        self._evaluator: PlanEvaluator | None = None

    def optimum(self, tolerance_pp: float, gate: SearchGate) -> Outcome:
        """The cheapest plan that passes ``gate`` among all that any process has run: the best one known."""
        passing = [
            o for o in _recorded(self._folder, self.profile).values() if gate.passes(o.counts, tolerance_pp)
        ]
        return min(passing, key=lambda outcome: outcome.energy_j)

    def _run(self, plans: Sequence[PrecisionPlan]) -> Iterator[Outcome]:
        self._evaluator = self._evaluator or self._build()
        with Journal(self._folder / _OUTCOMES.replace("*", str(os.getpid()))) as journal:
            for outcome in self._evaluator.evaluate_all(plans):
                journal.append(outcome, "run")
                yield outcome


def _recorded(folder: Path, profile: ModelProfile) -> dict[PrecisionPlan, Outcome]:
    known: dict[PrecisionPlan, Outcome] = {}
    for path in sorted(folder.glob(_OUTCOMES)):
        known |= {outcome.plan: outcome for outcome, _ in Journal(path).read(profile)}
    return known


@cache
def open_network(name: str) -> RecordedNetwork:
    """The network of `NETWORKS` called ``name``; it is profiled when it is opened for the first time.

    Raises:
        DataError: If its data are not on this machine.
    """
    recipe = NETWORKS[name]
    use_threads(1)  # outcomes do not depend on who runs them
    settings = compose_training(recipe.overrides)
    workload = build_workload(settings.workload)
    search = workload.first("search", recipe.samples)
    workload = replace(workload, splits={**workload.splits, "search": search})
    folder = Path(settings.workload.arguments["cache_dir"]) / "plans" / _key(workload, recipe)
    if not (folder / _PROFILE).exists():
        _profile(workload, settings, folder)
    profile = ModelProfile.from_json((folder / _PROFILE).read_text(encoding="utf-8"))

    def build() -> PlanEvaluator:
        model = build_model(workload, settings.precisions)
        model.load_calibration(calibration_from_json((folder / _CALIBRATION).read_text(encoding="utf-8")))
        return PlanEvaluator(model, profile, *split_batches(workload, "search"))

    return RecordedNetwork(profile, folder, build)


def _profile(workload: Workload, settings: TrainingSettings, folder: Path) -> None:
    with build_model(workload, settings.precisions) as model:
        profile, _ = profile_model(model, workload, settings.energy.costs)
        calibration = calibration_to_json(model.calibration)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _CALIBRATION, calibration.encode())
    write_atomically(folder / _PROFILE, profile.to_json().encode())  # last: it says that both are there


def _key(workload: Workload, recipe: ProblemSettings) -> str:
    """Names everything that decides outcomes, but for the code of the kernels."""
    return cache_key(
        {
            "workload": workload.name,
            "model": model_fingerprint(workload.model),
            "calibrate": workload.splits["calibrate"].fingerprint(),
            "search": workload.splits["search"].fingerprint(),
            "settings": list(recipe.overrides),
        }
    )
