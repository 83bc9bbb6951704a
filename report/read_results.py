"""Reading ``results.json`` (schema 1), the machine-readable truth every table and plot is drawn from.

What is absent or null reads as None or empty. What is there must have the right type: it is checked once,
here, so that tables, figures and the report need not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from report.end_to_end import EndToEnd
from report.fields import REMEDY, Fields
from report.results import (
    ArchivedPlan,
    CurvePoint,
    JudgedPlan,
    LayerResult,
    PlanResult,
    RunResults,
)
from wattbit.errors import ConfigError
from wattbit.profile import Provenance

RESULTS_SCHEMA = 1


def load_results(run_dir: Path) -> dict[str, Any]:
    """Read ``run_dir/results.json`` as plain data.

    Raises:
        ConfigError: If the file is missing, cannot be read or is no JSON object.
    """
    path = run_dir / "results.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no results.json in {run_dir}: give the folder of a run of train.py") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give the folder of a run of train.py"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}; {REMEDY}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a JSON {type(data).__name__}, not an object; {REMEDY}")
    return data


def parse_results(results: Mapping[str, Any]) -> RunResults:
    """Check and type the content of a ``results.json``.

    Raises:
        ConfigError: If the schema is another one, a needed field is missing, or a field has the wrong type.
    """
    top = Fields(results, "results")
    if results.get("schema") != RESULTS_SCHEMA:
        raise ConfigError(f"results schema {results.get('schema')!r} is not {RESULTS_SCHEMA}; {REMEDY}")
    provenance = top.needed_text("provenance")
    if provenance not in get_args(Provenance):
        raise ConfigError(f"results.provenance {provenance!r}: choose from {', '.join(get_args(Provenance))}")
    plans = tuple(_plan(fields) for fields in top.items("plans"))
    reference = top.fields("reference")
    return RunResults(
        workload=top.needed_text("workload"),
        description=top.text("description"),
        status=top.text("status") or "unknown",
        device=top.text("device") or "unknown device",
        provenance=provenance,
        energy_note=top.text("energy_note"),
        seed=top.text("seed"),
        command=top.text("command"),
        model=top.described("model"),
        reference_accuracies=_accuracies(reference),
        reference_energy_j=reference.number("energy_j"),
        reference_latency_ms=reference.number("latency_ms"),
        precisions=top.names("precisions"),
        tolerances_pp=_tolerances(top, plans),
        guardrail=top.described("guardrail"),
        guardrail_tolerance_pp=top.fields("guardrail").number("tolerance_pp"),
        interval_level=top.number("interval_level") or 0.95,
        splits=top.described("splits"),
        notes=top.names("notes"),
        plans=plans,
        deployed=_deployed(top, plans),
        sequences=_sequences(top.fields("sequences")),
        layers=tuple(_layer(fields) for fields in top.fields("profile").items("layers")),
        archive=tuple(plan for fields in top.items("archive") if (plan := _archived(fields)) is not None),
        learning_curve=tuple(_curve_point(fields) for fields in top.items("learning_curve")),
        seconds=top.fields("seconds").numbers(),
        peak_rss_mb=top.number("peak_rss_mb"),
    )


def _plan(fields: Fields) -> PlanResult:
    return PlanResult(
        method=fields.needed_text("method"),
        tolerance_pp=fields.number("tolerance_pp"),
        plan_id=fields.text("plan_id"),
        precisions=fields.texts("precisions"),
        energy_j=fields.number("energy_j"),
        saving=fields.number("saving"),
        latency_ms=fields.number("latency_ms"),
        memory_bytes=fields.number("memory_bytes"),
        search_drop_pp=fields.number("search_drop_pp"),
        certify_drop_pp=fields.number("certify_drop_pp"),
        certify_interval_pp=fields.interval("certify_interval_pp"),
        test_drop_pp=fields.number("test_drop_pp"),
        test_interval_pp=fields.interval("test_interval_pp"),
        verdict=fields.text("verdict") or None,
        reason=fields.text("reason"),
        evaluations=fields.number("evaluations"),
        seconds=fields.number("seconds"),
        confirmation=_end_to_end(fields.fields("confirmation")),
    )


def _end_to_end(fields: Fields) -> EndToEnd | None:
    if not fields.data:
        return None
    return EndToEnd(
        energy_j=fields.number("energy_j"),
        reference_energy_j=fields.number("reference_energy_j"),
        saving=fields.number("saving"),
        saving_interval=fields.interval("saving_interval"),
        interval_level=fields.number("interval_level") or 0.95,
        additive_error=fields.number("additive_error"),
    )


def _layer(fields: Fields) -> LayerResult:
    costs = fields.fields("costs")
    sensitivity = {name: costs.fields(name).number("sensitivity") for name in costs.data}
    return LayerResult(fields.fields("shape").needed_text("name"), sensitivity)


def _archived(fields: Fields) -> ArchivedPlan | None:
    energy_j, drop_pp = fields.number("energy_j"), fields.number("search_drop_pp")
    if energy_j is None or drop_pp is None:
        return None
    return ArchivedPlan(fields.text("method") or "search", energy_j, drop_pp)


def _curve_point(fields: Fields) -> CurvePoint:
    saving = fields.fields("best_saving")
    return CurvePoint(
        timesteps=fields.number("timesteps") or 0.0,
        mean_reward=fields.number("mean_reward"),
        best_saving={tolerance: saving.number(key) for tolerance, key in saving.by_tolerance().items()},
    )


def _tolerances(top: Fields, plans: tuple[PlanResult, ...]) -> tuple[float, ...]:
    """Every tolerance that is listed, has a plan, or has something deployed."""
    named = {*top.number_list("tolerances_pp"), *(plan.tolerance_pp for plan in plans)}
    return tuple(sorted({t for t in named if t is not None} | set(top.fields("deployed").by_tolerance())))


def _deployed(top: Fields, plans: tuple[PlanResult, ...]) -> dict[float, PlanResult | None]:
    """The deployed plans, each completed by what the list of plans knows about it (latency, test drop)."""
    deployed = top.fields("deployed")
    chosen: dict[float, PlanResult | None] = {}
    for tolerance_pp, key in deployed.by_tolerance().items():
        if deployed.data[key] is None:
            chosen[tolerance_pp] = None
            continue
        plan = replace(_plan(deployed.fields(key)), tolerance_pp=tolerance_pp)
        twins = [p for p in plans if p.plan_id and (p.plan_id, p.method) == (plan.plan_id, plan.method)]
        twins.sort(key=lambda twin: twin.tolerance_pp != tolerance_pp)
        chosen[tolerance_pp] = _completed(plan, twins[0]) if twins else plan
    return chosen


def _sequences(fields: Fields) -> dict[float, tuple[JudgedPlan, ...]]:
    return {
        tolerance_pp: tuple(
            JudgedPlan(item.text("plan_id"), item.needed_text("verdict"), "; ".join(item.names("reasons")))
            for item in fields.items(key)
        )
        for tolerance_pp, key in fields.by_tolerance().items()
    }


def _accuracies(reference: Fields) -> dict[str, float]:
    keys = {"search": "accuracy", "certify": "certify_accuracy", "test": "test_accuracy"}
    known = {split: reference.number(key) for split, key in keys.items()}
    return {split: accuracy for split, accuracy in known.items() if accuracy is not None}


def _completed(plan: PlanResult, twin: PlanResult) -> PlanResult:
    blank = {field.name for field in dataclass_fields(plan) if getattr(plan, field.name) in (None, "", {})}
    return replace(plan, **{name: getattr(twin, name) for name in blank})
