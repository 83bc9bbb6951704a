"""The record of a GPU report: rows on disk at once, failures in their place, the budget kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_stand_in import HandClock, minute_report, read_report
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.gpu.record import Budget, Report, Section, jsonable
from wattbit.errors import ConfigError, OutputError, one_line


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def report(tmp_path: Path, clock: HandClock) -> Report:
    """A report that may take one minute."""
    return minute_report(tmp_path, clock)


def test_a_section_that_fails_keeps_its_rows_and_does_not_lose_the_others(
    report: Report, tmp_path: Path
) -> None:
    def fail(section: Section) -> None:
        section.add({"figure": 1})
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    report.run("first", fail, share=0.5)
    report.run("second", lambda section: section.add({"figure": 2}), share=0.5)
    report.finish({})
    sections = read_report(tmp_path / "report.json")["sections"]
    assert sections["first"]["status"] == "failed"
    assert (
        sections["first"]["error"]
        == "RuntimeError: CUDA error: an illegal memory access was encountered more lines"
    )
    assert sections["first"]["rows"] == [{"figure": 1}]
    assert sections["second"]["status"] == "ok"
    assert report.failed == ("first",)


def test_every_row_is_on_disk_before_the_next_is_measured(report: Report, tmp_path: Path) -> None:
    def interrupted(section: Section) -> None:
        section.add({"figure": 1})
        assert read_report(tmp_path / "report.json")["sections"]["first"]["rows"] == [{"figure": 1}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.run("first", interrupted, share=1.0)
    kept = read_report(tmp_path / "report.json")
    assert kept["complete"] is False
    assert kept["sections"]["first"]["rows"] == [{"figure": 1}]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]


def test_a_section_for_which_no_time_is_left_is_skipped_and_says_so(
    report: Report, clock: HandClock, tmp_path: Path
) -> None:
    clock.seconds += 59.5
    report.run("late", lambda section: pytest.fail("it ran"), share=1.0)
    content = read_report(tmp_path / "report.json")["sections"]["late"]
    assert content["status"] == "skipped"
    assert "s are left, it needs 1" in content["reason"]


def test_a_section_leaves_the_time_of_others_to_them(
    report: Report, clock: HandClock, tmp_path: Path
) -> None:
    def greedy(section: Section) -> None:
        for item in section.within_time(range(100), 5.0, str):
            clock.seconds += 5.0
            section.add({"item": item})

    report.run("greedy", greedy, share=0.5)
    content = read_report(tmp_path / "report.json")["sections"]["greedy"]
    assert content["status"] == "partial"
    assert content["rows"] == [{"item": item} for item in range(6)]
    assert content["left_out"] == [str(item) for item in range(6, 100)]


@given(seconds=st.lists(st.floats(0.1, 30.0), min_size=1, max_size=30), share=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=30)
def test_items_of_known_length_never_overrun_the_budget(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], share: float
) -> None:
    clock = HandClock()
    report = Report(tmp_path_factory.mktemp("report") / "report.json", Budget(1.0, clock), {})

    def body(section: Section) -> None:
        for _ in section.within_time(range(20), max(seconds), str):
            clock.seconds += seconds[0]

    for number in range(4):
        report.run(str(number), body, share=share)
    assert clock.seconds <= 160.0


def test_a_file_that_vanishes_under_the_report_ends_it(report: Report, tmp_path: Path) -> None:
    def body(section: Section) -> None:
        (tmp_path / "report.json").unlink()
        (tmp_path / "report.json").mkdir()
        section.add({})

    with pytest.raises(OutputError, match="cannot write"):
        report.run("first", body, share=1.0)


def test_an_attempt_that_fails_is_a_row_with_its_error(report: Report, tmp_path: Path) -> None:
    def body(section: Section) -> None:
        section.attempt({"layer": "a"}, lambda: {"ms": float("nan")})
        section.attempt({"layer": "b"}, lambda: {"ms": 1 / 0})

    report.run("layers", body, share=1.0)
    assert read_report(tmp_path / "report.json")["sections"]["layers"]["rows"] == [
        {"layer": "a", "ms": "nan"},
        {"layer": "b", "error": "ZeroDivisionError: division by zero"},
    ]


def test_what_json_has_no_word_for_becomes_text() -> None:
    assert jsonable({"a": (float("inf"), 1.0, None, True), 2: [float("nan")]}) == {
        "a": ["inf", 1.0, None, True],
        "2": ["nan"],
    }
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_budget_is_a_length_of_time(minutes: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1440"):
        Budget(minutes)
