"""Energy and accuracy side by side, one row a plan."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.figure_parts import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION
from report.formatting import energy_scale, format_percent, format_tolerance
from report.plan_result import PlanResult
from report.results import RunResults

_VERDICTS = {
    "pass": {"marker": "o", "color": GREEN, "label": "verdict: pass"},
    "fail": {"marker": "X", "color": VERMILLION, "label": "verdict: fail"},
    "inconclusive": {"marker": "D", "color": BLUE, "label": "verdict: inconclusive"},
    None: {"marker": "s", "color": GREY, "label": "no verdict: drop on the search split"},
}


def energy_accuracy(run: RunResults) -> Figure:
    """Energy and drop, one row a plan: what is deployed, then the other methods at one tolerance."""
    rows = _rows(run)
    figure = Figure(figsize=(10, 1.9 + 0.33 * len(rows)), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, sharey=left)
    _draw_energies(left, rows, run)
    _draw_drops(right, rows)
    right.set_title(f"Accuracy lost, with {run.interval_name}")
    left.set_yticks(range(len(rows)), [row.label for row in rows])
    for label, row in zip(left.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.heading else "normal")
    left.set_ylim(len(rows) - 0.5, -0.6)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    right.tick_params(axis="y", labelleft=False)
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        figure.legend(list(unique.values()), list(unique), loc="outside lower center", ncols=3)
    return figure


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the energy and accuracy figure; a heading has neither energy nor plan."""

    label: str
    energy_j: float | None = None
    saving: str = ""
    plan: PlanResult | None = None
    tolerance_pp: float | None = None
    color: str = GREY
    heading: bool = False


def _rows(run: RunResults) -> list[_Row]:
    main = run.main_tolerance_pp
    rows = [_Row(f"reference: {run.reference_precision}", run.reference.energy_j)]
    if run.tolerances_pp:
        rows.append(_Row("deployed, by tolerance", heading=True))
    for tolerance_pp in run.tolerances_pp:
        plan, name = run.deployed_at(tolerance_pp), format_tolerance(tolerance_pp)
        if plan is None:
            rows.append(_Row(f"{name}: reference runs", run.reference.energy_j, tolerance_pp=tolerance_pp))
        else:
            label = f"{name}: {plan.method}"
            rows.append(_plan_row(label, plan, run, tolerance_pp, GREEN))
    others = [p for p in (*run.plans_at(main), *run.plans_at(None)) if not run.is_deployed(p)]
    if others:
        rows.append(_Row(f"other methods, at {format_tolerance(main)}", heading=True))
        rows += [_plan_row(p.method, p, run, p.tolerance_pp, SKY) for p in others]
    return rows


def _plan_row(label: str, plan: PlanResult, run: RunResults, tolerance_pp: float | None, color: str) -> _Row:
    """A plan's row: what it gave end to end, to the reference's scale, or what its layers add up to."""
    energy_j, saving, found = plan.energy_j, plan.saving, plan.confirmation
    if found is not None and run.reference.energy_j is not None:
        energy_j, saving = (1.0 - found.saving) * run.reference.energy_j, found.saving
    text = "" if saving is None else f"{format_percent(saving)} saved"
    if found is not None and found.finding != "saves":
        text = "no saving" if found.finding == "costs" else "saving unclear"
    return _Row(label, energy_j, text, plan, tolerance_pp, color=color)


def _draw_energies(axes: Axes, rows: list[_Row], run: RunResults) -> None:
    scale, unit = energy_scale(max(row.energy_j or 0.0 for row in rows))
    for y, row in enumerate(rows):
        if row.energy_j is None:
            continue
        hatch = "///" if row.plan is None else None
        axes.barh(y, scale * row.energy_j, height=0.62, color=row.color, hatch=hatch, edgecolor="white")
        axes.text(scale * row.energy_j, y, f" {row.saving}", va="center", fontsize=9.5)
    axes.set_xlim(0, 1.22 * scale * max(row.energy_j or 0.0 for row in rows))
    axes.set_title("Energy")
    axes.set_xlabel(f"energy per inference [{unit}, {run.provenance}]")
    axes.spines["left"].set_visible(False)


def _draw_drops(axes: Axes, rows: list[_Row]) -> None:
    tolerances = [row.tolerance_pp for row in rows if row.tolerance_pp is not None]
    limit = 2.0 * max(tolerances, default=1.0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    lows = [0.0]
    for y, row in enumerate(rows):
        if row.tolerance_pp is not None:
            label = "tolerance"
            axes.plot([row.tolerance_pp] * 2, [y - 0.4, y + 0.4], color=BLACK, linewidth=2, label=label)
        if row.plan is not None:
            lows.append(_draw_drop(axes, y, row.plan, limit))
    axes.set_xlim(min(lows) - 0.05 * limit, 1.16 * limit)
    axes.set_xlabel("drop against the reference [pp]")
    axes.spines["left"].set_visible(False)


def _draw_drop(axes: Axes, y: int, plan: PlanResult, limit: float) -> float:
    """Draw one drop with its interval and return the lowest value drawn."""
    certified = plan.certify_drop_pp is not None
    drop_pp = plan.certify_drop_pp if certified else plan.search_drop_pp
    if drop_pp is None:
        return 0.0
    look = _VERDICTS.get(plan.verdict if certified else None, _VERDICTS[None])
    color, label = look["color"], look["label"]
    if drop_pp > limit:
        axes.plot(limit, y, ">", color=color, markersize=7)
        axes.text(1.03 * limit, y, f"{drop_pp:.1f} pp", va="center", fontsize=9.5)
        return 0.0
    low, high = (certified and plan.certify_interval_pp) or (drop_pp, drop_pp)
    axes.plot([low, min(high, limit)], [y, y], color=color, linewidth=1.6)
    axes.plot(drop_pp, y, look["marker"], color=color, markersize=7, label=label, linestyle="none")
    return low
