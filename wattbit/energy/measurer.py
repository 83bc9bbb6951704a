"""Measuring many things with one meter, by one protocol, and keeping what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.protocol import RejectionRules, Work, compare_all, measure_idle_w

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to measure.

    Attributes:
        label: What it is, for people.
        what: What it is, as plain JSON values; with what the measurer depends on, the key it is kept under.
        reference: One run of the reference.
        candidate: One run of what is measured against it.
    """

    label: str
    what: Mapping[str, Any]
    reference: Work
    candidate: Work


class Measurer:
    """Measures jobs, unless the cache has them.

    Args:
        meter: The meter to read.
        window_s: Shortest measurement window, seconds; None for what suits the meter.
        trials: Trials a job; None for what suits the meter.
        rules: When a trial is thrown away; None for the defaults.
        idle_s: For so long the idle device's power is measured first, where the meter measures; 0: not.
        cache: Where measurements are kept; None to make them every time.
        depends_on: What all of them depend on, as plain JSON values.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        *,
        window_s: float | None = None,
        trials: int | None = None,
        rules: RejectionRules | None = None,
        idle_s: float = 0.0,
        cache: MeasurementCache | None = None,
        depends_on: Mapping[str, Any] | None = None,
    ) -> None:
        self._meter = meter
        self._window_s = window_s
        self._trials = trials
        self._rules = rules or RejectionRules()
        self._idle_s = idle_s if meter.provenance == "measured" else 0.0
        self._idle_w: float | None = None
        self._cache = cache
        self._depends_on = {
            **(depends_on or {}),
            "window_s": window_s,
            "trials": trials,
            "idle_s": self._idle_s,
            "rules": asdict(self._rules),
        }

    def measure(self, jobs: Sequence[Job]) -> list[EnergyComparison]:
        """The comparisons of ``jobs``, from the cache or made now, taking turns.

        Raises:
            MeterError: If the meter fails, or the device was not left alone.
            OutputError: If they cannot be kept.
        """
        found = [self._known(job) for job in jobs]
        new = [index for index, known in enumerate(found) if known is None]
        if new:
            for index, comparison in zip(new, self._compare([jobs[i] for i in new]), strict=True):
                found[index] = comparison
                if self._cache:
                    self._cache.put(self._parts(jobs[index]), comparison)
        complete = [comparison for comparison in found if comparison is not None]
        uncertain = [job.label for job, one in zip(jobs, complete, strict=True) if not one.reliable]
        if uncertain:
            _log.warning(
                "%s energy is uncertain by more than %.0f %% for %s, because windows of the same work "
                "kept differing; measure on a quieter machine%s",
                self._meter.provenance,
                100.0 * self._rules.max_cv,
                ", ".join(uncertain),
                f" (delete {self._cache.path} first)" if self._cache else "",
            )
        return complete

    def _known(self, job: Job) -> EnergyComparison | None:
        return self._cache.get(self._parts(job)) if self._cache else None

    def _parts(self, job: Job) -> dict[str, Any]:
        return {**self._depends_on, **job.what}

    def _compare(self, jobs: Sequence[Job]) -> list[EnergyComparison]:
        if self._idle_s > 0.0 and self._idle_w is None:
            self._idle_w = measure_idle_w(self._meter, self._idle_s)
        return compare_all(
            self._meter,
            [(job.reference, job.candidate) for job in jobs],
            window_s=self._window_s,
            trials=self._trials,
            rules=self._rules,
            idle_w=self._idle_w,
        )
