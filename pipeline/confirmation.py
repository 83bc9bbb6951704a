"""Metering what is deployed end to end: does it save energy as a whole, and how far off is the sum of layers?

Energies of layers do not add up exactly: caches, clock rates and conversions depend on the neighbours. So a
plan that was chosen by the sum of its layers is metered as a whole, against the whole reference. Where energy
is modelled there is nothing to meter, and nothing is claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.judge_search import Judged
from report.end_to_end import EndToEnd
from wattbit.energy.energy_comparison import Confirmation
from wattbit.errors import MeterError
from wattbit.profile import ModelProfile
from wattbit.profiling.layer_costs import MeteredCost
from wattbit.profiling.profiler import CostModel
from wattbit.serving.bundle import BundledPlan

log = logging.getLogger("wattbit.train")


def confirmed(judged: Judged, costs: CostModel) -> Judged:
    """Add to the results what each deployed plan gives end to end; the bundle then carries that figure.

    Entries of ``plans`` and ``deployed`` get a ``confirmation``: energy per inference of the plan and of the
    reference beside it, the saving with its interval, and the error of the sum of the layers. Where it cannot
    be had, a note says why.

    Args:
        judged: What the search came to.
        costs: What the profile was made with.
    """
    profile = judged.bundle.profile
    plans = list(dict.fromkeys(plan.plan for plan in judged.bundle.plans))
    if profile.provenance == "modelled" or not plans:
        return judged
    if not isinstance(costs, MeteredCost) or _source(costs) != _source(profile):
        why = f"energy now is {costs.provenance} on {costs.device}, the profile's {profile.provenance} on "
        return _noted(judged, f"no plan was confirmed end to end: {why}{profile.device}")
    try:
        found = costs.confirm(profile, plans)
    except MeterError as error:
        return _noted(judged, f"no plan was confirmed end to end: {' '.join(str(error).split())}")
    records = {plan.plan_id: _record(one, costs) for plan, one in zip(plans, found, strict=True)}
    for plan_id, record in records.items():
        _log_finding(plan_id, record)
    results = judged.results
    deployed = {
        tolerance: None if entry is None else _with(entry, records)
        for tolerance, entry in results["deployed"].items()
    }
    entries = [_with(entry, records) for entry in results["plans"]]
    bundled = tuple(_carrying(plan, records, profile) for plan in judged.bundle.plans)
    return Judged({**results, "deployed": deployed, "plans": entries}, replace(judged.bundle, plans=bundled))


def _log_finding(plan_id: str, record: Mapping[str, Any]) -> None:
    interval = record["saving_interval"]
    found = EndToEnd(
        energy_j=record["energy_j"],
        reference_energy_j=record["reference_energy_j"],
        saving=record["saving"],
        saving_interval=None if interval is None else (interval[0], interval[1]),
        interval_level=record["interval_level"],
        additive_error=record["additive_error"],
    )
    level = logging.INFO if found.finding == "saves" else logging.WARNING
    log.log(level, "plan %s %s, energy %s", plan_id, found.text, record["provenance"])


def _record(found: Confirmation, costs: MeteredCost) -> dict[str, Any]:
    """The entry ``confirmation``; energies in joules per inference."""
    measured = found.measured
    low, high = measured.ratio_low, measured.ratio_high
    return {
        "energy_j": measured.candidate_j / costs.samples,
        "reference_energy_j": measured.reference_j / costs.samples,
        "provenance": costs.provenance,
        "saving": 1.0 - measured.energy_ratio,
        "saving_interval": None if low is None or high is None else [1.0 - high, 1.0 - low],
        "interval_level": costs.confidence,
        "net_saving": None if measured.net_ratio is None else 1.0 - measured.net_ratio,
        "additive_error": found.error,
        "trials": measured.trials,
        "reliable": measured.reliable,
    }


def certificate_record(plan: BundledPlan, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the audit log says of a certified plan, end to end where it was metered so."""
    fields = ("tolerance_pp", "verdict", "drop_pp", "saving", "provenance")
    record = {"plan_id": plan.plan.plan_id, **{name: getattr(plan, name) for name in fields}}
    entry = results["deployed"][f"{plan.tolerance_pp:g}"]
    return record if "confirmation" not in entry else {**record, "confirmation": entry["confirmation"]}


def _source(figures: CostModel | ModelProfile) -> tuple[str, str]:
    return figures.provenance, figures.device


def _noted(judged: Judged, note: str) -> Judged:
    log.warning("%s", note)
    return Judged({**judged.results, "notes": [*judged.results["notes"], note]}, judged.bundle)


def _with(entry: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = records.get(entry["plan_id"])
    return dict(entry) if known is None else {**entry, "confirmation": known}


def _carrying(
    plan: BundledPlan, records: Mapping[str, Mapping[str, Any]], profile: ModelProfile
) -> BundledPlan:
    """``plan`` with the saving found end to end, on the profile's figure of the reference."""
    saving = records[plan.plan.plan_id]["saving"]
    return replace(plan, saving=saving, energy_j=(1.0 - saving) * profile.reference_energy_j)
