"""The console tables of a run."""

import io
from typing import Any

import pytest
from results_example import bare_results, example_results, interrupted_results
from rich.console import Console, RenderableType

from report.formatting import format_energy, format_percent
from report.tables import deployed_summary, final_table
from wattbit.errors import ConfigError


def printed(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


@pytest.mark.parametrize("make", [example_results, interrupted_results, bare_results])
def test_the_table_is_read_whole_in_100_columns(make: Any) -> None:
    narrow, wide = printed(final_table(make())), printed(final_table(make()), width=300)
    assert max(map(len, narrow.splitlines())) <= 100
    assert "\u2026" not in narrow
    assert [line.split() for line in narrow.splitlines()] == [line.split() for line in wide.splitlines()]


def test_every_row_with_an_energy_says_where_the_figure_comes_from() -> None:
    text = printed(final_table({**example_results(), "provenance": "estimated"}))
    rows = [
        line
        for line in text.splitlines()
        if line.rstrip().endswith("J") or " nJ" in line or "\u00b5J" in line
    ]
    assert len(rows) > 30
    assert all(row.rstrip().endswith("estimated") for row in rows)


def test_plans_are_grouped_by_tolerance_with_the_deployed_one_first() -> None:
    results = example_results()
    text = printed(final_table(results))
    headings = [line.strip() for line in text.splitlines() if line.strip().endswith(" pp")]
    assert headings == ["0.25 pp", "0.5 pp", "1 pp", "2 pp"]
    lines = text.splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.strip() == "1 pp") + 1]
    plan = results["deployed"]["1.0"]
    assert first.split()[:2] == [">", "ppo"]
    assert format_energy(plan["energy_j"]) in first
    assert format_percent(plan["saving"]) in first
    low, high = plan["certify_interval_pp"]
    assert f"{plan['certify_drop_pp']:.2f} [{low:.2f}, {high:.2f}]" in first
    assert "pass" in first


def test_a_tolerance_without_a_certified_plan_shows_the_reference_as_what_runs() -> None:
    lines = printed(final_table(example_results())).splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.strip() == "0.25 pp") + 1]
    assert first.split()[:2] == [">", "reference"]


def test_a_plan_without_a_certificate_shows_its_drop_on_the_search_split() -> None:
    row = line_with(printed(final_table(interrupted_results())), "greedy")
    assert "on search" in row
    assert "not tested" in row


def test_plans_for_any_tolerance_come_last() -> None:
    results = example_results()
    results["plans"].append({**results["plans"][0], "tolerance_pp": None, "method": "uniform_fp16"})
    assert "any tolerance" in printed(final_table(results))
    assert printed(final_table(results)).splitlines()[-2].split()[0] == "uniform_fp16"


def test_the_summary_says_in_a_line_each_what_runs_and_why() -> None:
    results = example_results()
    text = " ".join(printed(deployed_summary(results), width=300).split())
    plan = results["deployed"]["2.0"]
    assert (
        f"2 pp ppo saves {format_percent(plan['saving'])}: {format_energy(plan['energy_j'])} modelled" in text
    )
    assert "0.25 pp the reference runs: ppo was tested, verdict inconclusive: 600 samples cannot" in text
    assert "the reference costs 1.20 \u00b5J modelled per inference" in text


def test_names_that_look_like_console_markup_are_printed_as_they_are() -> None:
    results = example_results()
    results["plans"][0]["method"] = "[red]x[/red]"
    results["workload"] = "[bold]"
    results["plans"][0]["energy_j"] = 1e-9
    assert "[red]x[/red]" in printed(final_table(results))
    assert "[bold]:" in printed(deployed_summary(results))


def test_results_of_another_schema_are_refused() -> None:
    for make_table in (final_table, deployed_summary):
        with pytest.raises(ConfigError, match="results schema 9 is not 1"):
            make_table({"schema": 9})
