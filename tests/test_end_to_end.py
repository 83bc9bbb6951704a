"""What a plan gave end to end, wherever a run's savings are shown."""

from __future__ import annotations

from typing import Any

import pytest
from console_text import printed
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from report_page import page_of
from results_example import confirmed_results, deployed_at, example_results, read

from report.captions import CAPTIONS
from report.end_to_end import EndToEnd
from report.energy_figure import energy_accuracy
from report.formatting import format_percent
from report.tables import deployed_summary, final_table
from wattbit.errors import ConfigError


def found(saving: float, interval: tuple[float, float] | None) -> EndToEnd:
    return EndToEnd(1e-6, 2e-6, "estimated", saving, interval, 0.9, None, -0.034, 12, True)


def test_a_saving_is_claimed_only_where_the_interval_excludes_that_there_is_none() -> None:
    details = "the sum of its layers is off by -3.4 %)"
    assert found(0.31, (0.29, 0.33)).text == (
        f"saves 31.0 % end to end (90 % interval 29.0 % to 33.0 %; {details}"
    )
    assert found(0.01, (-0.02, 0.04)).text == (
        f"is not shown to save energy end to end (saving 1.0 %, 90 % interval -2.0 % to 4.0 %; {details}"
    )
    assert found(-0.04, (-0.06, -0.02)).text == (
        f"does not save energy end to end (saving -4.0 %, 90 % interval -6.0 % to -2.0 %; {details}"
    )
    assert found(0.5, None).text.startswith("is not shown to save energy")


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_each_finding_excludes_the_others(one: float, other: float) -> None:
    low, high = sorted((one, other))
    finding = found((low + high) / 2, (low, high)).finding
    assert (finding == "saves") == (low > 0.0)
    assert (finding == "costs") == (high <= 0.0)


def test_the_summary_says_what_each_deployed_plan_does_as_a_whole() -> None:
    text = " ".join(printed(deployed_summary(read(confirmed_results())), width=400).split())
    assert "0.5 pp ppo does not save energy end to end (saving -4.0 %," in text
    assert "1 pp ppo saves 31.0 % end to end (95 % interval 29.0 % to 33.0 %;" in text
    assert "759 nJ estimated, the reference beside it 1.10 µJ estimated, drop" in text
    assert "2 pp ppo is not shown to save energy end to end" in text
    assert "measured" not in text


def test_the_table_shows_no_saving_for_a_plan_that_has_none_as_a_whole() -> None:
    results = confirmed_results()
    text = printed(final_table(read(results)))
    rows = [line for line in text.splitlines() if line.strip().startswith("> ppo")]
    savings = [deployed_at(results, t)["plan"]["saving"] for t in (0.5, 1.0, 2.0)]
    for row, word, saving in zip(rows, ("none", format_percent(savings[1]), "unclear"), savings, strict=True):
        assert word in row
        assert (format_percent(saving) in row) == (word == format_percent(saving))


def test_the_report_has_a_row_for_each_plan_metered_as_a_whole() -> None:
    text = page_of(confirmed_results()).text
    part = text[text.index("Each deployed plan as a whole") : text.index("Energy and accuracy side by side")]
    assert "31.0 % (29.0 % to 33.0 %)" in part
    assert [part.count(word) for word in ("✓ saves energy", "? not shown to save", "✗ does not save")] == [
        1
    ] * 3
    assert part.count("1.10 µJ estimated") == 3
    headline = text[: text.index("What is deployed")]
    assert "At a tolerance of 1 pp, the plan found by ppo saves 31.0 % end to end" in headline


def test_the_headline_claims_no_saving_that_the_whole_model_does_not_show() -> None:
    results = confirmed_results()
    deployed_at(results, 1.0)["plan"]["confirmation"] = deployed_at(results, 0.5)["plan"]["confirmation"]
    text = page_of(results).text
    headline = text[: text.index("What is deployed")]
    assert "does not save energy end to end" in headline
    assert "saved" not in headline
    assert "saves" not in headline


def test_without_a_meter_nothing_is_said_of_the_whole_model() -> None:
    text = page_of(example_results()).text
    assert "Each deployed plan as a whole" not in text
    assert "end to end (" not in text
    assert "end to end (" not in printed(deployed_summary(read(example_results())))


def test_the_figure_draws_what_the_whole_model_gave() -> None:
    run = read(confirmed_results())
    figure = energy_accuracy(run)
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    assert {"31.0 % saved", "no saving", "saving unclear"} <= set(words)
    widths = {round(bar.get_width(), 3) for bar in figure.axes[0].patches if isinstance(bar, Rectangle)}
    # In microjoules, on the reference's own bar of 1.2.
    assert {1.2, round(1.2 * 1.04, 3), round(1.2 * 0.69, 3)} <= widths
    assert "which does not save energy end to end" in CAPTIONS["energy_accuracy"].describe(run)


def test_a_plan_deployed_at_two_tolerances_has_one_row_that_names_both() -> None:
    results = confirmed_results()
    deployed_at(results, 2.0)["plan"] = dict(deployed_at(results, 1.0)["plan"])
    confirmed = read(results).confirmed
    assert [tolerances for tolerances, _ in confirmed] == [(0.5,), (1.0, 2.0)]


@pytest.mark.parametrize(
    ("field", "value"), [("saving", "much"), ("saving_interval", [1]), ("additive_error", {})]
)
def test_a_confirmation_of_the_wrong_shape_is_refused_by_name(field: str, value: Any) -> None:
    results = confirmed_results()
    deployed_at(results, 1.0)["plan"]["confirmation"][field] = value
    with pytest.raises(ConfigError, match=f"confirmation.{field} is"):
        read(results)
