"""What a run came to, as tables for the console."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from report.formatting import (
    UNKNOWN,
    format_duration,
    format_energy,
    format_joules,
    format_percent,
    format_pp,
    format_time,
    format_tolerance,
)
from report.plan_result import PlanResult
from report.results import RunResults

_TWO_LINES = 205
_VERDICT_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def last_screen(run: RunResults) -> RenderableType:
    """What runs at each tolerance and why, beside the best baseline and the reference; fits 100 columns."""
    took = run.seconds.get("total")
    head = f"{run.workload}: {run.status}" + (f" after {format_duration(took)}" if took else "")
    return Group(
        Text(f"{head}; energy is per inference\n{run.device}\n"), _deployed_table(run), *_remarks(run), Text()
    )


def full_screen(run: RunResults) -> RenderableType:
    """Every method's plans, and a line for each tolerance on what runs there."""
    warnings = [Text(f"WARNING: {warning}.", style="bold yellow") for warning in run.warnings]
    warnings += [Text(f"Coverage: {text}.") for text in _coverage(run)]
    return Group(final_table(run), deployed_summary(run), *warnings)


def _coverage(run: RunResults) -> list[str]:
    """What of the model can switch, where that is not all, and why no saving is claimed."""
    if run.coverage is None or run.coverage.macs > 0.9995:
        return []
    return [text for text in (run.coverage.text, run.withheld) if text]


def final_table(run: RunResults) -> Table:
    """Every plan of a run by tolerance, the deployed one first and marked ``>``; fits 100 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("method", overflow="fold", min_width=14)
    for name in ("energy", "saving", f"drop [{run.interval_name}], pp", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("provenance", no_wrap=True)
    energy, latency = format_energy(run.reference.energy_j), format_time(run.reference.latency_ms)
    reference = (energy, "", "", latency, "", run.provenance)
    table.add_row("  reference", *reference, end_section=True)
    for tolerance_pp, plans in run.groups:
        table.add_row(Text(format_tolerance(tolerance_pp), style="bold"))
        if tolerance_pp is not None and run.deployed_at(tolerance_pp) is None:
            table.add_row("> reference", *reference, style="bold", end_section=not plans)
        for index, plan in enumerate(plans):
            _add_plan(table, plan, run, last=index == len(plans) - 1)
    return table


def deployed_summary(run: RunResults) -> RenderableType:
    """What runs at each tolerance and why, one line each."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for tolerance_pp in run.tolerances_pp:
        lines.add_row(Text(format_tolerance(tolerance_pp), style="bold"), _deployed_line(run, tolerance_pp))
    before = format_joules(run.reference.energy_j, run.provenance)
    head = Text(f"{run.workload}: {run.status}; the reference costs {before} per inference\n{run.device}")
    return Group(head, lines)


def _plan_cells(plan: PlanResult, run: RunResults) -> tuple[Text | str, ...]:
    energy = format_joules(plan.energy_j, run.provenance)
    return Text(plan.method), energy, run.saving_text(plan), _drop(plan), _verdict(plan)


def _verdict(plan: PlanResult) -> Text:
    return Text(plan.verdict or "not tested", style=_VERDICT_STYLES.get(plan.verdict or "", "dim"))


def _deployed_table(run: RunResults) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tolerance", no_wrap=True)
    table.add_column("", no_wrap=True)
    # On a narrow terminal these three share what is left, some cells on two lines.
    table.add_column("plan", overflow="fold", max_width=24)
    table.add_column("energy", justify="right")
    table.add_column("saving", justify="right", no_wrap=True)
    table.add_column(f"drop [{100 * run.interval_level:g} % CI], pp", justify="right")
    table.add_column("verdict", no_wrap=True)
    before = format_joules(run.reference.energy_j, run.provenance)
    table.add_row("", "reference", Text(run.reference_precision), before, end_section=True)
    for tolerance_pp in run.tolerances_pp:
        plan, baseline = run.deployed_at(tolerance_pp), run.best_baseline(tolerance_pp)
        cells = ("the reference", before) if plan is None else _plan_cells(plan, run)
        table.add_row(format_tolerance(tolerance_pp), "deployed", *cells, style="bold")
        if baseline is None:
            table.add_row("", "best baseline", "none passed", style="dim")
        elif plan is not None and plan.plan_id == baseline.plan_id:
            table.add_row("", "best baseline", Text(baseline.method), "the same plan")
        else:
            table.add_row("", "best baseline", *_plan_cells(baseline, run))
    return table


def _remarks(run: RunResults) -> list[Text]:
    """Why the reference runs, and what deployed plans save as a whole; one remark for equal reasons."""
    remarks: dict[str, list[str]] = {}
    for tolerance_pp in run.tolerances_pp:
        plan, baseline = run.deployed_at(tolerance_pp), run.best_baseline(tolerance_pp)
        found = []
        if plan is None:
            found.append(f"the reference runs: {run.why_reference(tolerance_pp)}")
        elif plan.confirmation is not None:
            found.append(f"{plan.method} {plan.confirmation.text}")
        if plan and baseline and (baseline.energy_j or 0.0) < (plan.energy_j or 0.0):
            found.append("the baseline costs less; tested by itself, it may have passed by luck")
        for remark in found:
            remarks.setdefault(remark, []).append(format_tolerance(tolerance_pp))
    texts = [f"{', '.join(names)}: {remark}" for remark, names in remarks.items()]
    lines = [Text(f"WARNING: {warning}.", style="bold yellow") for warning in run.warnings]
    lines += [Text(f"Coverage: {text}.") for text in _coverage(run)]
    lines += [Text(textwrap.shorten(text, _TWO_LINES, placeholder=" …")) for text in texts]
    return [Text(), *lines] if lines else []


def _add_plan(table: Table, plan: PlanResult, run: RunResults, last: bool) -> None:
    deployed = run.is_deployed(plan)
    table.add_row(
        Text(f"{'>' if deployed else ' '} {plan.method}"),
        format_energy(plan.energy_j),
        run.saving_text(plan),
        _drop(plan),
        format_time(plan.latency_ms),
        _verdict(plan),
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
    if run.withheld:
        line = Text(f"{plan.method} runs, {run.withheld}: ")
        line.append(format_joules(plan.energy_j, run.provenance))
    elif found is None:
        line = Text(f"{plan.method} saves {format_percent(plan.saving)}: ")
        line.append(format_joules(plan.energy_j, run.provenance))
    else:
        line = Text(f"{plan.method} {found.text}: {format_joules(found.energy_j, run.provenance)}, ")
        line.append(f"the reference beside it {format_joules(found.reference_energy_j, run.provenance)}")
    line.append(f", drop {_drop(plan)} pp, verdict ")
    return line.append_text(_verdict(plan))
