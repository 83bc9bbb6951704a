"""What a run came to, as tables for the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from report.formatting import (
    UNKNOWN,
    format_energy,
    format_joules,
    format_percent,
    format_pp,
    format_time,
    format_tolerance,
)
from report.read_results import parse_results
from report.results import PlanResult, RunResults

_VERDICT_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def final_table(results: Mapping[str, Any]) -> Table:
    """Every plan of a run, grouped by tolerance, the deployed one first and marked ``>``; fits 100 columns.

    Raises:
        ConfigError: If ``results`` is no ``results.json`` of this schema.
    """
    run = parse_results(results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("method", overflow="fold", min_width=14)
    for name in ("energy", "saving", f"drop [{run.interval_name}], pp", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("provenance", no_wrap=True)
    energy, latency = format_energy(run.reference_energy_j), format_time(run.reference_latency_ms)
    reference = (energy, "", "", latency, "", run.provenance)
    table.add_row("  reference", *reference, end_section=True)
    for tolerance_pp, plans in run.groups:
        table.add_row(Text(format_tolerance(tolerance_pp), style="bold"))
        if tolerance_pp is not None and run.deployed_at(tolerance_pp) is None:
            table.add_row("> reference", *reference, style="bold", end_section=not plans)
        for index, plan in enumerate(plans):
            _add_plan(table, plan, run, last=index == len(plans) - 1)
    return table


def deployed_summary(results: Mapping[str, Any]) -> RenderableType:
    """What runs at each tolerance and why, one line each.

    Raises:
        ConfigError: If ``results`` is no ``results.json`` of this schema.
    """
    run = parse_results(results)
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for tolerance_pp in run.tolerances_pp:
        lines.add_row(Text(format_tolerance(tolerance_pp), style="bold"), _deployed_line(run, tolerance_pp))
    before = format_joules(run.reference_energy_j, run.provenance)
    head = Text(f"{run.workload}: {run.status}; the reference costs {before} per inference\n{run.device}")
    return Group(head, lines)


def _add_plan(table: Table, plan: PlanResult, run: RunResults, last: bool) -> None:
    deployed = run.is_deployed(plan)
    table.add_row(
        Text(f"{'>' if deployed else ' '} {plan.method}"),
        format_energy(plan.energy_j),
        plan.saving_text,
        _drop(plan),
        format_time(plan.latency_ms),
        Text(plan.verdict or "not tested", style=_VERDICT_STYLES.get(plan.verdict or "", "dim")),
        run.provenance,
        style="bold" if deployed else "",
        end_section=last,
    )


def _drop(plan: PlanResult) -> str:
    if plan.certify_drop_pp is None:
        return UNKNOWN if plan.search_drop_pp is None else f"{format_pp(plan.search_drop_pp)} on search"
    if plan.certify_interval_pp is None:
        return format_pp(plan.certify_drop_pp)
    low, high = plan.certify_interval_pp
    return f"{format_pp(plan.certify_drop_pp)} [{format_pp(low)}, {format_pp(high)}]"


def _deployed_line(run: RunResults, tolerance_pp: float) -> Text:
    plan = run.deployed_at(tolerance_pp)
    if plan is None:
        return Text(f"the reference runs: {run.why_reference(tolerance_pp)}")
    found = plan.confirmation
    if found is None:
        line = Text(f"{plan.method} saves {format_percent(plan.saving)}: ")
        line.append(format_joules(plan.energy_j, run.provenance))
    else:
        line = Text(f"{plan.method} {found.text}: {format_joules(found.energy_j, run.provenance)}, ")
        line.append(f"the reference beside it {format_joules(found.reference_energy_j, run.provenance)}")
    line.append(f", drop {_drop(plan)} pp, verdict ")
    return line.append(plan.verdict or "not tested", style=_VERDICT_STYLES.get(plan.verdict or "", ""))
