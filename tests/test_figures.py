"""The figures of a run: drawn for every run, deterministic, readable without colour."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from results_example import TOLERANCES, bare_results, deployed_at, example_results, interrupted_results, read

from report.captions import CAPTIONS
from report.figure_parts import missing
from report.figures import FIGURES, figure_png
from report.heatmaps import short_names

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def draw(name: str, results: dict[str, Any]) -> Figure:
    return FIGURES[name](read(results))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def small(results: dict[str, Any]) -> dict[str, Any]:
    results["layers"] = results["layers"][:2]
    results["archive"] = results["archive"][:3]
    results["learning_curve"] = results["learning_curve"][:1]
    return results


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_for_every_run(name: str) -> None:
    for results in (example_results(), interrupted_results(), small(example_results()), bare_results()):
        assert figure_png(name, read(results)).startswith(SIGNATURE)


@pytest.mark.parametrize("name", FIGURES)
def test_equal_results_give_equal_bytes(name: str) -> None:
    run = read(small(example_results()))
    assert figure_png(name, run) == figure_png(name, run)


def test_drawing_leaves_no_trace_in_pyplot_and_does_not_heed_its_settings() -> None:
    run = read(small(example_results()))
    before = figure_png("pareto", run)
    with plt.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert figure_png("pareto", run) == before
    assert plt.get_fignums() == []


def test_every_figure_has_words_around_it_in_the_same_order() -> None:
    assert list(CAPTIONS) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_missing_is_said_only_where_it_is_missing(name: str) -> None:
    assert missing(read(example_results()), name) == ""
    assert "status of the run: unknown" in missing(read(bare_results()), name)


@pytest.mark.parametrize("name", ["energy_accuracy", "pareto", "learning_curve"])
@pytest.mark.parametrize("provenance", ["measured", "estimated", "modelled"])
def test_axes_of_energy_name_its_provenance(name: str, provenance: str) -> None:
    figure = draw(name, {**example_results(), "provenance": provenance})
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    energy = [label for label in labels if "energy" in label]
    assert energy
    assert all(provenance in label for label in energy)


def test_the_energy_figure_has_a_row_for_every_tolerance_and_every_other_method() -> None:
    labels = texts(draw("energy_accuracy", example_results()))
    assert "0.25 pp: reference runs" in labels
    assert {"0.5 pp: ppo", "1 pp: ppo", "2 pp: ppo"} <= set(labels)
    assert {"greedy", "ilp", "random", "policy", "uniform_int8"} <= set(labels)


def test_a_drop_beyond_the_axis_is_written_out() -> None:
    assert "71.7 pp" in texts(draw("energy_accuracy", example_results()))


def test_a_verdict_is_told_by_its_marker_and_its_word() -> None:
    figure = draw("energy_accuracy", example_results())
    words = texts(figure)
    assert {"verdict: pass", "verdict: fail"} <= set(words)
    lines = {line.get_label(): line.get_marker() for axes in figure.axes for line in axes.get_lines()}
    assert lines["verdict: pass"] != lines["verdict: fail"]


def test_the_pareto_front_holds_no_plan_that_another_beats() -> None:
    results = example_results()
    (axes,) = draw("pareto", results).axes
    front = next(line for line in axes.get_lines() if line.get_label() == "Pareto front")
    points = list(zip(np.asarray(front.get_xdata()), np.asarray(front.get_ydata()), strict=True))
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    for energy, drop in points:
        for plan in results["archive"]:
            cheaper = plan["energy_j"] * 1e6 < energy * (1 - 1e-9)
            assert not (cheaper and plan["search_drop_pp"] <= drop)


def test_energies_that_span_much_are_drawn_on_a_logarithmic_axis_that_says_so() -> None:
    (axes,) = draw("pareto", example_results()).axes
    assert (axes.get_xscale(), axes.get_xlabel().endswith("logarithmic")) == ("log", True)
    results = example_results()
    results["archive"] = [plan for plan in results["archive"] if plan["energy_j"] > 4e-7]
    (axes,) = draw("pareto", results).axes
    assert (axes.get_xscale(), axes.get_xlim()[0]) == ("linear", 0)


def test_plans_outside_the_pareto_figure_are_counted() -> None:
    results = example_results()
    hidden = sum(plan["search_drop_pp"] > 2.5 * max(TOLERANCES) for plan in results["archive"])
    assert hidden > 0
    assert any(
        f"{hidden} of {len(results['archive'])} lie above" in text for text in texts(draw("pareto", results))
    )


def test_every_cell_of_the_precision_map_names_its_precision() -> None:
    results = example_results()
    plan = deployed_at(results, 1.0)["plan"]
    words = texts(draw("precisions", results))
    for name in set(plan["precisions"].values()):
        assert words.count(name) >= list(plan["precisions"].values()).count(name)
    assert words.count("fp32") == len(results["layers"])


def test_the_sensitivity_map_tells_unsupported_from_zero() -> None:
    words = texts(draw("sensitivity", example_results()))
    assert words.count("-") == 2
    assert words.count("0") == 10


def test_rounding_noise_does_not_take_the_sensitivity_scale() -> None:
    results = example_results()
    results["layers"][0]["costs"]["bf16"]["sensitivity"] = 1e-30
    results["layers"][1]["costs"]["bf16"]["sensitivity"] = -1e-17
    bar = draw("sensitivity", results).axes[-1]
    assert bar.get_ylim()[0] > 1e-8


def test_names_with_dollar_signs_foreign_letters_and_line_breaks_are_drawn_as_they_are() -> None:
    results = small(example_results())
    names = ["cost$\\frac{$.weight_$", "\u5c42.\u6ce8\u610f\n\u529b"]
    for layer, name in zip(results["layers"], names, strict=True):
        layer["shape"]["name"] = name
    for plan in results["plans"]:
        plan["precisions"] = dict.fromkeys(names, "int8")
    results["plans"][18]["method"] = "$method$"
    run = read(results)
    assert all(figure_png(name, run).startswith(SIGNATURE) for name in FIGURES)
    assert "\u5c42.\u6ce8\u610f \u529b" in texts(FIGURES["sensitivity"](run))


def test_labels_stay_inside_the_picture() -> None:
    results = example_results()
    results["plans"][18]["method"] = "a_method_with_a_rather_long_name"
    for name in FIGURES:
        figure = draw(name, results)
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert (box.x0 > -0.01, box.y0 > -0.01, box.x1 < width + 0.01, box.y1 < height + 0.01) == (
            True,
        ) * 4, name


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("ab.", min_size=1, max_size=60), unique=True, max_size=8), st.integers(4, 40))
def test_shortened_names_can_still_be_told_apart(names: list[str], limit: int) -> None:
    short = short_names(names, limit)
    assert len(set(short)) == len(names)
    assert all(len(label) <= max(limit, len(name)) for label, name in zip(short, names, strict=True))


def test_names_are_cut_at_the_front_where_layers_differ_least() -> None:
    names = [f"model.encoder.layers.{i}.attention.query" for i in range(3)]
    assert short_names(names, 20) == [f"\u2026s.{i}.attention.query" for i in range(3)]
