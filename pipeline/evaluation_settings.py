"""Everything that evaluate.py is told, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.energy_source import EnergySource
from pipeline.factory import Factory
from pipeline.training_settings import require_machine_settings
from wattbit.guardrail import Guardrail, RelativeGuardrail
from wattbit.serving.bundle import ControllerBundle
from workloads.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """The settings of an evaluation.

    Attributes:
        source: The bundle whose plans are judged, with its profile; or, for a plan alone, the source of
            energy to profile the workload with.
        bundle_folder: Where the bundle was read, for messages.
        plan: A plan's file or the name of a precision; None for those of the bundle alone.
        json: Where the figures are written; None to print them only.
        workload: Loads the workload.
        guardrail: The limits.
        seed: What the workload was trained with, for the record.
        threads: torch's threads within an operation.
    """

    source: ControllerBundle | EnergySource
    bundle_folder: str | None
    plan: str | None
    json: Path | None
    workload: Factory[Workload]
    guardrail: Guardrail | RelativeGuardrail
    seed: int
    threads: int

    def __post_init__(self) -> None:
        require_machine_settings(self.seed, self.threads)
