"""The figures of a run, each drawn from its results alone.

Colours are Okabe-Ito or viridis, and whatever a colour says, a marker, a hatch or a word says too. Figures
are drawn with matplotlib's object interface, so that nothing global is touched.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from report.energy_figure import energy_accuracy
from report.figure_parts import BLACK, BLUE, GREY, MARKS, YELLOW, missing
from report.formatting import energy_scale, format_tolerance
from report.heatmaps import precisions, sensitivity
from report.results import RunResults

STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "legend.frameon": False,
    # Names come from users' models: a dollar sign in one is no formula.
    "text.parse_math": False,
}
PNG_DPI = 160
_TALL_IN = 20.0
_WIDE_SPAN = 8.0


def pareto(run: RunResults) -> Figure:
    """Every evaluated plan by energy and drop, the front of the best, and the deployed plans."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.add_subplot()
    scale, unit = energy_scale(max([*(plan.energy_j for plan in run.archive), run.reference.energy_j or 0.0]))
    _draw_archive(axes, run, scale)
    x, y = zip(*_front(run), strict=True)
    energies = [scale * energy for energy in x]
    axes.step(energies, y, where="post", color=BLACK, linewidth=1.4, label="Pareto front")
    hidden = _frame_drops(axes, run)
    _mark_deployed(axes, run, scale)
    if run.reference.energy_j is not None:
        label = f"reference ({run.reference_precision})"
        axes.plot(
            scale * run.reference.energy_j, 0, "P", color=BLACK, markersize=9, label=label, linestyle="none"
        )
    title = "Every plan evaluated during the search"
    axes.set_title(f"{title} ({hidden} of {len(run.archive)} lie above this range)" if hidden else title)
    axes.set_xlabel(f"energy per inference [{unit}, {run.provenance}]")
    axes.set_ylabel("drop on the search split [pp]")
    _scale_energies(axes, [scale * plan.energy_j for plan in run.archive])
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def learning_curve(run: RunResults) -> Figure:
    """Mean reward, and the best feasible saving per tolerance, over training steps."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    reward, saving = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    steps = [point.timesteps for point in run.learning_curve]
    every = max(1, len(steps) // 8)
    rewards = [_nan(point.mean_reward) for point in run.learning_curve]
    reward.plot(steps, rewards, color=BLUE, marker="o", markevery=every, markersize=4)
    reward.set_title("What the policy earns")
    reward.set_ylabel("mean reward of an episode")
    for index, tolerance_pp in enumerate(run.tolerances_pp):
        color, marker = MARKS[index % len(MARKS)]
        best = [100 * _nan(point.saving_at(tolerance_pp)) for point in run.learning_curve]
        # Shifted marks, so that lines that lie on each other can still be told apart.
        marks = (index * every // len(run.tolerances_pp), every)
        label = format_tolerance(tolerance_pp)
        saving.plot(steps, best, color=color, marker=marker, markevery=marks, markersize=5, label=label)
    saving.set_title("Best plan within each tolerance")
    saving.set_ylabel(f"energy saved [%, {run.provenance}]")
    if run.tolerances_pp:
        saving.legend(title="tolerance", loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (reward, saving):
        axes.set_xlabel("training steps")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    return figure


FIGURES: Mapping[str, Callable[[RunResults], Figure]] = MappingProxyType(
    {
        "energy_accuracy": energy_accuracy,
        "pareto": pareto,
        "precisions": precisions,
        "sensitivity": sensitivity,
        "learning_curve": learning_curve,
    }
)
"""Every figure of a report by its file name without ``.png``. A figure needs what `missing` looks for."""


def figure_png(name: str, run: RunResults) -> bytes:
    """The figure called ``name``, or why it cannot be drawn, as a PNG; equal results give equal bytes."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # A layer may be named in a script the font lacks; its box is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        message = missing(run, name)
        figure = _message(message) if message else FIGURES[name](run)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        # The map of a model with hundreds of layers would weigh megabytes at the full resolution.
        dpi = PNG_DPI if figure.get_figheight() < _TALL_IN else PNG_DPI * 0.7
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _message(text: str) -> Figure:
    figure = Figure(figsize=(10, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


def _draw_archive(axes: Axes, run: RunResults, scale: float) -> None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for plan in run.archive:
        method = "uniform" if plan.method.startswith("uniform") else plan.method
        groups.setdefault(method, []).append((scale * plan.energy_j, plan.search_drop_pp))
    for index, method in enumerate(sorted(groups, key=lambda name: (-len(groups[name]), name))):
        color, marker = MARKS[min(index, len(MARKS) - 1)]
        x, y = zip(*groups[method], strict=True)
        axes.plot(x, y, marker, color=color, markersize=4.5, alpha=0.6, label=method, linestyle="none")


def _front(run: RunResults) -> list[tuple[float, float]]:
    """The plans that no other plan beats in both energy and drop, cheapest first."""
    front: list[tuple[float, float]] = []
    for plan in sorted(run.archive, key=lambda plan: (plan.energy_j, plan.search_drop_pp)):
        if not front or plan.search_drop_pp < front[-1][1]:
            front.append((plan.energy_j, plan.search_drop_pp))
    return front


def _scale_energies(axes: Axes, energies: Sequence[float]) -> None:
    """From 0, or logarithmic where the energies span so much that the cheap plans would be one blot."""
    lowest, highest = min(energies), axes.dataLim.x1
    if lowest <= 0 or highest < _WIDE_SPAN * lowest:
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")


def _frame_drops(axes: Axes, run: RunResults) -> int:
    """Limit the drop axis to what the tolerances are about, and return how many plans lie above it."""
    drops = [plan.search_drop_pp for plan in run.archive]
    widest = max(drops) if max(drops) > 0 else max(run.tolerances_pp, default=1.0)
    top = min(1.08 * widest, 2.5 * max(run.tolerances_pp)) if run.tolerances_pp else 1.08 * widest
    bottom = min(0.0, *drops) - 0.04 * top
    axes.set_ylim(bottom, top)
    labelled = top
    for tolerance_pp in sorted((t for t in run.tolerances_pp if t < top), reverse=True):
        axes.axhline(tolerance_pp, color=GREY, linewidth=0.8, linestyle="--")
        if labelled - tolerance_pp > 0.04 * (top - bottom):
            text = format_tolerance(tolerance_pp)
            axes.text(
                1.005, tolerance_pp, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5
            )
            labelled = tolerance_pp
    return sum(drop > top for drop in drops)


def _mark_deployed(axes: Axes, run: RunResults, scale: float) -> None:
    marks: dict[tuple[float, float], list[float]] = {}
    for tolerance_pp in run.tolerances_pp:
        plan = run.deployed_at(tolerance_pp)
        if plan is not None and plan.energy_j is not None and plan.search_drop_pp is not None:
            marks.setdefault((scale * plan.energy_j, plan.search_drop_pp), []).append(tolerance_pp)
    star: dict[str, Any] = {"color": YELLOW, "markeredgecolor": BLACK, "markersize": 15, "linestyle": "none"}
    for index, ((x, y), tolerances) in enumerate(marks.items()):
        axes.plot(x, y, "*", label="deployed" if index == 0 else None, **star)
        axes.annotate(
            f"deployed at {', '.join(f'{t:g}' for t in tolerances)} pp",
            (x, y),
            (70, 16 + 16 * index),
            textcoords="offset points",
            va="center",
            arrowprops={"arrowstyle": "-", "color": BLACK, "linewidth": 0.8},
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": GREY, "linewidth": 0.5},
            fontsize=10,
        )


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
