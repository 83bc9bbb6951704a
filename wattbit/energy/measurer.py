"""Measuring many things with one meter, by one protocol, and keeping what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.interleaved import compare_all, measure_idle_w
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.measurement_protocol import DEFAULT_PROTOCOL, MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.trial import Work

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
        protocol: How to measure; the idle device is measured where the meter's figures are ``measured``.
        cache: Where measurements are kept; None to make them every time.
        depends_on: What all of them depend on, as plain JSON values.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        protocol: MeasurementProtocol = DEFAULT_PROTOCOL,
        *,
        cache: MeasurementCache | None = None,
        depends_on: Mapping[str, Any] | None = None,
    ) -> None:
        self._meter = meter
        idle_s = protocol.idle_s if meter.provenance == "measured" else 0.0
        self._protocol = replace(protocol, idle_s=idle_s)
        self._idle_w: float | None = None
        self._cache = cache
        self._depends_on = {**(depends_on or {}), **asdict(self._protocol)}

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
                100.0 * self._protocol.rules.max_cv,
                ", ".join(uncertain),
                f" (delete {self._cache.path} first)" if self._cache else "",
            )
        return complete

    def _known(self, job: Job) -> EnergyComparison | None:
        return self._cache.get(self._parts(job)) if self._cache else None

    def _parts(self, job: Job) -> dict[str, Any]:
        return {**self._depends_on, **job.what}

    def _compare(self, jobs: Sequence[Job]) -> list[EnergyComparison]:
        if self._protocol.idle_s > 0.0 and self._idle_w is None:
            self._idle_w = measure_idle_w(self._meter, self._protocol.idle_s)
        pairs = [(job.reference, job.candidate) for job in jobs]
        return compare_all(self._meter, pairs, self._protocol, idle_w=self._idle_w)
