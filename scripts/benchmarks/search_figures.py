"""The figures of the search comparison."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from report.figure_parts import BLUE, GREY, MARKS
from report.figures import PNG_DPI, STYLE
from scripts.benchmarks.search_cells import CellResult
from scripts.benchmarks.search_scores import anytime_regrets
from scripts.benchmarks.search_tables import Results
from wattbit.storage.atomic_write import write_atomically

# More methods than marks share the last one.
_LINES = ("-", "--", ":", "-.")
# Below this percentage two searches are as good as each other, and a logarithm has no 0.
_LEAST = 0.01


def draw_search(results: Results, problems: Sequence[str], budget: int, path: Path) -> None:
    """Regret against evaluations, one panel a problem, one line a method: mean over tolerances and seeds.

    Raises:
        OutputError: If the file cannot be written.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(max(5.2, 4.6 * len(problems)), 5.2), layout="constrained")
        for index, problem in enumerate(problems, 1):
            axes = figure.add_subplot(1, len(problems), index)
            methods = [s[1] for s in results.settings() if s[0] == problem and s[2] == budget]
            for place, method in enumerate(methods):
                curves = [anytime_regrets(r) for r in results.of(problem, method, budget)]
                mean = np.maximum(100.0 * np.mean(curves, axis=0), _LEAST)
                color, marker = MARKS[min(place, len(MARKS) - 1)]
                line = _LINES[max(0, place - len(MARKS) + 1) % len(_LINES)]
                axes.plot(
                    mean, color=color, marker=marker, markersize=5, linestyle=line, label=method,
                    markevery=(place * budget // 90, max(1, budget // 10)),
                    linewidth=2.2 if method == "ppo" else 1.2,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_title(problem)
            axes.set_xlabel("distinct plans evaluated")
            axes.grid(alpha=0.25)
        figure.axes[0].set_ylabel("energy above the best plan [%],\nmean over tolerances and seeds")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, 1 + 2 * len(problems)))
        _write(figure, path)


def draw_scaling(results: Sequence[CellResult], path: Path) -> None:
    """Processor time of a search against the network's layers, beside a line of slope 1.

    Raises:
        OutputError: If the file cannot be written.
    """
    layers = np.array([len(result.reference.plan) for result in results])
    seconds = np.array([result.cpu_seconds for result in results])
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.loglog(layers, seconds, color=BLUE, marker="o", label="PPO")
        axes.loglog(layers, seconds[0] * layers / layers[0], color=GREY, linestyle="--", label="linear")
        axes.set_xticks(layers, [str(count) for count in layers])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(f"A search of {results[0].cell.budget} evaluations")
        axes.set_xlabel("layers")
        axes.set_ylabel("processor time [s]")
        axes.grid(alpha=0.25)
        axes.legend()
        _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=PNG_DPI)
    write_atomically(path, content.getvalue(), "give another folder to --figures")
