"""Metering what is deployed end to end: does it save energy as a whole, and how far off is the sum of layers?

Energies of layers do not add up exactly: caches, clock rates and conversions depend on the neighbours. So a
plan that was chosen by the sum of its layers is metered as a whole, against the whole reference. Where energy
is modelled there is nothing to meter, and nothing is claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.judge_search import Judged
from report.end_to_end import EndToEnd
from report.plan_result import PlanResult
from report.results import RunResults
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
    known = {plan.plan_id: _end_to_end(one, costs) for plan, one in zip(plans, found, strict=True)}
    for plan_id, one in known.items():
        level = logging.INFO if one.finding == "saves" else logging.WARNING
        log.log(level, "plan %s %s, energy %s", plan_id, one.text, one.provenance)
    results = replace(
        judged.results,
        deployed=tuple(
            replace(entry, plan=entry.plan and _confirmed_plan(entry.plan, known))
            for entry in judged.results.deployed
        ),
        plans=tuple(_confirmed_plan(plan, known) for plan in judged.results.plans),
    )
    bundled = tuple(_carrying(plan, known[plan.plan.plan_id], profile) for plan in judged.bundle.plans)
    return Judged(results, replace(judged.bundle, plans=bundled))


def _end_to_end(found: Confirmation, costs: MeteredCost) -> EndToEnd:
    measured = found.measured
    low, high = measured.ratio_low, measured.ratio_high
    return EndToEnd(
        energy_j=measured.candidate_j / costs.samples,
        reference_energy_j=measured.reference_j / costs.samples,
        provenance=costs.provenance,
        saving=1.0 - measured.energy_ratio,
        saving_interval=None if low is None or high is None else (1.0 - high, 1.0 - low),
        interval_level=costs.confidence,
        net_saving=None if measured.net_ratio is None else 1.0 - measured.net_ratio,
        additive_error=found.error,
        trials=measured.trials,
        reliable=measured.reliable,
    )


def certificate_record(plan: BundledPlan, results: RunResults) -> dict[str, Any]:
    """What the audit log says of a certified plan, end to end where it was metered so."""
    fields = ("tolerance_pp", "verdict", "drop_pp", "saving", "provenance")
    record = {"plan_id": plan.plan.plan_id, **{name: getattr(plan, name) for name in fields}}
    deployed = results.deployed_at(plan.tolerance_pp)
    if deployed is None or deployed.confirmation is None:
        return record
    return {**record, "confirmation": asdict(deployed.confirmation)}


def _source(figures: CostModel | ModelProfile) -> tuple[str, str]:
    return figures.provenance, figures.device


def _noted(judged: Judged, note: str) -> Judged:
    log.warning("%s", note)
    return replace(judged, results=replace(judged.results, notes=(*judged.results.notes, note)))


def _confirmed_plan(plan: PlanResult, known: Mapping[str, EndToEnd]) -> PlanResult:
    return replace(plan, confirmation=known.get(plan.plan_id))


def _carrying(plan: BundledPlan, found: EndToEnd, profile: ModelProfile) -> BundledPlan:
    """``plan`` with the saving found end to end, on the profile's figure of the reference."""
    energy_j = (1.0 - found.saving) * profile.reference_energy_j
    return replace(plan, saving=found.saving, energy_j=energy_j)
