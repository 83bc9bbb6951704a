"""The console tables of a run."""

from typing import Any

import pytest
from console_text import printed
from results_example import (
    bare_results,
    confirmed_results,
    deployed_at,
    example_results,
    interrupted_results,
    read,
)

from report.formatting import format_energy, format_percent
from report.tables import deployed_summary, final_table, last_screen


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


@pytest.mark.parametrize("make", [example_results, interrupted_results, bare_results])
def test_the_table_is_read_whole_in_100_columns(make: Any) -> None:
    narrow, wide = printed(final_table(read(make()))), printed(final_table(read(make())), width=300)
    assert max(map(len, narrow.splitlines())) <= 100
    assert "\u2026" not in narrow
    assert [line.split() for line in narrow.splitlines()] == [line.split() for line in wide.splitlines()]


def test_every_row_with_an_energy_says_where_the_figure_comes_from() -> None:
    text = printed(final_table(read({**example_results(), "provenance": "estimated"})))
    rows = [
        line
        for line in text.splitlines()
        if line.rstrip().endswith("J") or " nJ" in line or "\u00b5J" in line
    ]
    assert len(rows) > 30
    assert all(row.rstrip().endswith("estimated") for row in rows)


def test_plans_are_grouped_by_tolerance_with_the_deployed_one_first() -> None:
    results = example_results()
    text = printed(final_table(read(results)))
    headings = [line.strip() for line in text.splitlines() if line.strip().endswith(" pp")]
    assert headings == ["0.25 pp", "0.5 pp", "1 pp", "2 pp"]
    lines = text.splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.strip() == "1 pp") + 1]
    plan = deployed_at(results, 1.0)["plan"]
    assert first.split()[:2] == [">", "ppo"]
    assert format_energy(plan["energy_j"]) in first
    assert format_percent(plan["saving"]) in first
    low, high = plan["certify_interval_pp"]
    assert f"{plan['certify_drop_pp']:.2f} [{low:.2f}, {high:.2f}]" in first
    assert "pass" in first


def test_a_tolerance_without_a_certified_plan_shows_the_reference_as_what_runs() -> None:
    lines = printed(final_table(read(example_results()))).splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.strip() == "0.25 pp") + 1]
    assert first.split()[:2] == [">", "reference"]


def test_a_plan_without_a_certificate_shows_its_drop_on_the_search_split() -> None:
    row = line_with(printed(final_table(read(interrupted_results()))), "greedy")
    assert "on search" in row
    assert "not tested" in row


def test_plans_for_any_tolerance_come_last() -> None:
    results = example_results()
    results["plans"].append({**results["plans"][0], "tolerance_pp": None, "method": "uniform_fp16"})
    assert "any tolerance" in printed(final_table(read(results)))
    assert printed(final_table(read(results))).splitlines()[-2].split()[0] == "uniform_fp16"


def crowded_results() -> dict[str, Any]:
    """Six tolerances: three plans metered end to end, three references, each with a long reason."""
    results = confirmed_results()
    reason = f"the reason of {'a long ' * 40}sentence"
    for tolerance in (0.25, 4.0, 8.0):
        judged = {"plan_id": "ab", "verdict": "fail", "reasons": [f"{reason} at {tolerance}"]}
        results["sequences"] = [
            *results.get("sequences", []),
            {"tolerance_pp": tolerance, "plans": [judged]},
        ]
    for tolerance in (4.0, 8.0):
        results["deployed"].append({"tolerance_pp": tolerance, "plan": None})
        results["tolerances_pp"].append(tolerance)
        results["plans"] += [
            {**plan, "tolerance_pp": tolerance, "method": "a_method_with_a_rather_long_name"}
            for plan in results["plans"]
            if (plan["tolerance_pp"], plan["method"]) == (2.0, "greedy")
        ]
    return results


@pytest.mark.parametrize(
    "make", [example_results, confirmed_results, interrupted_results, bare_results, crowded_results]
)
def test_the_last_screen_fits_40_lines_of_110_columns_with_the_three_files_it_leads_to(make: Any) -> None:
    lines = printed(last_screen(read(make())), width=110).splitlines()
    assert len(lines) + 3 <= 40
    assert max(map(len, lines)) <= 110
    rows = lines[: next((i for i, line in enumerate(lines) if " pp: " in line), len(lines))]
    assert "\u2026" not in "".join(rows)


def test_the_last_screen_shows_for_each_tolerance_what_is_deployed_and_the_best_baseline() -> None:
    results = example_results()
    lines = printed(last_screen(read(results)), width=110).splitlines()
    for tolerance in (0.5, 1.0, 2.0):
        index = next(i for i, line in enumerate(lines) if line.startswith(f"{tolerance:g} pp"))
        plan = deployed_at(results, tolerance)["plan"]
        deployed, baseline = lines[index : index + 2]
        assert deployed.split()[2:4] == ["deployed", "ppo"]
        assert f"{format_energy(plan['energy_j'])} modelled" in deployed
        assert f"{plan['certify_drop_pp']:.2f} [" in deployed
        cheapest = min(
            (p["energy_j"], p["method"])
            for p in results["plans"]
            if p["tolerance_pp"] == tolerance
            and p["verdict"] == "pass"
            and p["method"] not in ("ppo", "policy")
        )
        assert baseline.split()[:3] == ["best", "baseline", cheapest[1]]
        assert f"{format_energy(cheapest[0])} modelled" in baseline
    reference = line_with("\n".join(lines), "reference", "fp32")
    assert "1.20 \u00b5J modelled" in reference
    index = next(i for i, line in enumerate(lines) if line.startswith("0.25 pp"))
    assert "the reference" in lines[index]
    assert "none passed" in lines[index + 1]
    assert "0.25 pp: the reference runs: ppo was tested, verdict inconclusive" in "\n".join(lines)


def test_a_baseline_whose_plan_is_deployed_is_said_to_be_the_same() -> None:
    results = example_results()
    plan = next(p for p in results["plans"] if (p["method"], p["tolerance_pp"]) == ("greedy", 2.0))
    deployed_at(results, 2.0)["plan"] = plan
    lines = printed(last_screen(read(results)), width=110).splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("2 pp"))
    assert "greedy" in lines[index]
    assert lines[index + 1].split() == ["best", "baseline", "greedy", "the", "same", "plan"]


def test_with_a_meter_the_last_screen_says_what_each_plan_does_as_a_whole() -> None:
    text = " ".join(printed(last_screen(read(confirmed_results())), width=110).split())
    assert "0.5 pp: ppo does not save energy end to end (saving -4.0 %," in text
    assert "1 pp: ppo saves 31.0 % end to end (95 % interval 29.0 % to 33.0 %;" in text


def test_the_summary_says_in_a_line_each_what_runs_and_why() -> None:
    results = example_results()
    text = " ".join(printed(deployed_summary(read(results)), width=300).split())
    plan = deployed_at(results, 2.0)["plan"]
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
    assert "[red]x[/red]" in printed(final_table(read(results)))
    assert "[bold]:" in printed(deployed_summary(read(results)))
    assert "[bold]:" in printed(last_screen(read(results)))
