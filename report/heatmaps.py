"""Two maps of a model, one row a layer: the precision each plan gives it, and how sensitive it is.

Every cell carries its value in words, so the colour (viridis, safe for colour-blind readers) only helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from report.formatting import format_short, format_tolerance
from report.plan_result import PlanResult
from report.results import RunResults
from wattbit.precision import PRECISIONS

_LABEL_LIMIT = 34
_HEADER_LIMIT = 12
_MAX_BASELINES = 8
# Below that a colour bar is too short for its labels; the cells say it all.
_ROWS_OF_A_BAR = 5
_DECADES = 1e-7
# A taller image than this is more than common viewers open; rows shrink instead.
_MAX_HEIGHT_IN = 60.0
_ABSENT = "#E8E8E8"
_BITS = Normalize(math.log2(4), math.log2(64))


def precisions(run: RunResults) -> Figure:
    """The precision of each layer: deployed plans by tolerance, then the other methods at one tolerance."""
    layers = run.layer_names
    deployed = [(f"{format_tolerance(t)}\n", run.deployed_at(t)) for t in run.tolerances_pp]
    headers = [head + (_elided(p.method, _HEADER_LIMIT) if p else "reference") for head, p in deployed]
    baselines = _baselines(run)
    widths = [max(1, len(deployed)), len(baselines)] if baselines else [max(1, len(deployed))]
    figure, row_in = _map_figure(len(layers), columns=sum(widths) + 0.3, column_in=0.92)
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    plans = [plan for _, plan in deployed]
    left = figure.add_subplot(grid[0, 0])
    _draw_plans(left, layers, plans or [None], run.reference_precision, row_in)
    _label_columns(left, headers or ["reference"], "Deployed, by tolerance")
    left.set_yticks(range(len(layers)), short_names(layers), fontsize=_font(row_in))
    if baselines:
        right = figure.add_subplot(grid[0, 1])
        _draw_plans(right, layers, baselines, run.reference_precision, row_in)
        title = f"Other methods, at {format_tolerance(run.main_tolerance_pp)}"
        # An empty first line keeps both halves' titles at one height.
        _label_columns(right, [f"\n{_elided(plan.method, _HEADER_LIMIT)}" for plan in baselines], title)
        right.set_yticks([])
    figure.supxlabel("the brighter, the fewer bits", fontsize=9.5)
    return figure


def sensitivity(run: RunResults) -> Figure:
    """How far the output moves when one layer alone runs at one precision, on a logarithmic scale."""
    known = {name for layer in run.layers for name in layer.costs}
    columns = [name for name in run.precisions if name in known] + sorted(known - set(run.precisions))
    figure, row_in = _map_figure(len(run.layers), columns=len(columns) + 1.0, column_in=0.74)
    axes = figure.add_subplot()
    values = [c.sensitivity for layer in run.layers for c in layer.costs.values() if c.sensitivity > 0]
    high = max(values, default=1.0)
    # What rounding leaves behind would otherwise take most of the scale.
    low = max(min(values, default=high), _DECADES * high)
    norm = LogNorm(low, high if high > low else 10 * low, clip=True)
    for y, layer in enumerate(run.layers):
        for x, name in enumerate(columns):
            value = layer.costs[name].sensitivity if name in layer.costs else 0.0
            position = float(norm(value)) if value > 0 else None
            text = format_short(value) if name in layer.costs else "-"
            _draw_cell(axes, x, y, text, position, row_in)
    _frame(axes, len(columns), len(run.layers))
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    names = short_names([layer.name for layer in run.layers])
    axes.set_yticks(range(len(names)), names, fontsize=_font(row_in))
    if len(names) >= _ROWS_OF_A_BAR:
        bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, fraction=0.03, pad=0.02, aspect=25)
        bar.formatter = FuncFormatter(lambda value, _: format_short(value))
        bar.minorformatter = NullFormatter()
        bar.set_label("KL divergence [nats]")
    return figure


def short_names(names: Sequence[str], limit: int = _LABEL_LIMIT) -> list[str]:
    """Names cut to their last ``limit`` characters, or to more where that is needed to tell them apart."""
    names = [" ".join(name.split()) for name in names]
    longest = max((len(name) for name in names), default=0)
    for length in range(limit, longest):
        short = [_tail(name, length) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return names


def _baselines(run: RunResults) -> list[PlanResult]:
    """The plans at the main tolerance that are not deployed; a uniform one has nothing to show here."""
    plans = run.plans_at(run.main_tolerance_pp)
    shown = [p for p in plans if not run.is_deployed(p) and len(set(p.precisions.values())) > 1]
    return shown[:_MAX_BASELINES]


def _draw_plans(
    axes: Axes, layers: Sequence[str], plans: Sequence[PlanResult | None], reference: str, row_in: float
) -> None:
    for x, plan in enumerate(plans):
        for y, layer in enumerate(layers):
            name = reference if plan is None else plan.precisions.get(layer, "?")
            _draw_cell(axes, x, y, name, _width_position(name), row_in)
    _frame(axes, len(plans), len(layers))


def _width_position(name: str) -> float | None:
    """Where a precision lies between 4 bits (1) and 64 bits (0) of weight and activation together."""
    known = PRECISIONS.get(name)
    if known is None:
        return None
    return 1.0 - float(_BITS(math.log2(known.weight_bits + known.activation_bits)))


def _draw_cell(axes: Axes, x: int, y: int, text: str, position: float | None, row_in: float) -> None:
    """Draw one cell; ``position`` is its place in the colour map, None for a cell without a value."""
    color = _ABSENT if position is None else colormaps["viridis"](position)
    patch = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=0.8)
    patch.set_in_layout(False)
    axes.add_artist(patch)
    ink = "black" if _luminance(to_rgb(color)) > 0.18 else "white"
    label = axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=min(9.0, _font(row_in)))
    # A cell cannot push the layout; leaving it out keeps maps of hundreds of layers quick.
    label.set_in_layout(False)


def _frame(axes: Axes, columns: int, rows: int) -> None:
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_columns(axes: Axes, labels: Sequence[str], title: str) -> None:
    axes.set_xticks(range(len(labels)), labels, fontsize=9.5)
    axes.set_title(title)


def _map_figure(rows: int, columns: float, column_in: float) -> tuple[Figure, float]:
    row_in = min(0.34 if rows <= 60 else 0.2, (_MAX_HEIGHT_IN - 1.5) / rows)
    size = (3.2 + columns * column_in, 1.5 + rows * row_in)
    return Figure(figsize=size, layout="constrained"), row_in


def _font(row_in: float) -> float:
    """The font size that fits a row of ``row_in`` inches, in points."""
    return min(10.0, max(1.0, 72 * row_in * 0.62))


def _luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance as WCAG 2 defines it; black and white contrast equally at 0.18."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _tail(name: str, length: int) -> str:
    return name if len(name) <= length else f"…{name[len(name) - length + 1 :].lstrip('.')}"


def _elided(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
