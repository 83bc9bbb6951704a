"""The report of a run: one page that needs nothing else, whatever the run left out."""

import base64
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import FIGURES, PNG, Page, page_of
from results_example import bare_results, deployed_at, example_results, interrupted_results, read

from report.formatting import (
    format_energy,
    format_percent,
)
from report.html_report import render_report, write_report
from scripts.report import main
from wattbit.errors import OutputError


def run_dir_with(tmp_path: Path, results: object) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path


# --- the page -------------------------------------------------------------------------------------------


def test_the_headline_says_what_is_deployed_with_saving_interval_and_verdict() -> None:
    results = example_results()
    plan = deployed_at(results, 1.0)["plan"]
    text = page_of(results).text
    headline = text[: text.index("What is deployed")]
    assert f"{format_energy(plan['energy_j'])} modelled" in headline
    assert f"{format_percent(plan['saving'])} saved" in headline
    low, high = plan["certify_interval_pp"]
    assert f"95 % interval {low:.2f} to {high:.2f} pp" in headline
    assert "pass" in headline


def test_a_tolerance_without_a_certified_plan_says_that_the_reference_runs_and_why() -> None:
    text = page_of(example_results()).text
    assert "the reference (fp32) runs" in text
    assert (
        "No certified plan: ppo was tested, verdict inconclusive: 600 samples cannot certify 0.25 pp" in text
    )


def test_the_tested_sequence_explains_a_missing_certificate_where_it_is_recorded() -> None:
    results = example_results()
    judged = {
        "plan_id": "ab",
        "verdict": "inconclusive",
        "reasons": ["1080 samples would do"],
        "needed_samples": 1080,
    }
    results["sequences"] = [
        {"tolerance_pp": 0.25, "plans": [judged]},
        {"tolerance_pp": 2.0, "plans": []},
    ]
    deployed_at(results, 2.0)["plan"] = None
    text = page_of(results).text
    assert "even the most cautious plan tested got the verdict inconclusive: 1080 samples would do" in text
    assert "the search found no plan to test that saves energy" in text


def test_without_a_plan_at_the_main_tolerance_the_headline_names_the_nearest_that_has_one() -> None:
    results = example_results()
    deployed_at(results, 1.0)["plan"] = None
    text = page_of(results).text
    assert "At a tolerance of 1 pp, no plan is certified: the reference runs" in text
    assert "At a tolerance of 0.5 pp, the plan found by ppo costs" in text


@pytest.mark.parametrize("provenance", ["measured", "estimated", "modelled"])
@pytest.mark.parametrize("make", [example_results, interrupted_results])
def test_every_joule_figure_is_followed_by_its_provenance(make: Any, provenance: str) -> None:
    page = page_of({**make(), "provenance": provenance})
    everything = " ".join([page.text, *(image["alt"] or "" for image in page.images)])
    figures = re.findall(r"\d [afpn\u00b5mkMG]?J\b(.{0,10})", everything)
    assert len(figures) > 10
    assert {rest.split()[0].strip(".,;:") for rest in figures} == {provenance}


def test_the_page_needs_no_network_and_no_scripts() -> None:
    page = page_of(example_results())
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_every_picture_has_a_description_and_its_size() -> None:
    images = page_of(example_results()).images
    assert len(images) == len(FIGURES)
    for image in images:
        assert len(image["alt"] or "") > 40
        assert (image["width"], image["height"]) == ("625", "312")


def test_names_from_a_model_cannot_inject_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    results = example_results()
    results["workload"] = results["device"] = results["energy_note"] = evil
    results["notes"] = [evil]
    results["plans"][0]["reason"] = results["plans"][0]["method"] = evil
    results["layers"][0]["shape"]["name"] = evil
    source = render_report(read(results), dict.fromkeys(FIGURES, PNG))
    assert "<script" not in source
    assert html.escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in source
    assert evil in Page(source).text


def test_notes_glossary_and_the_way_to_reproduce_are_on_the_page() -> None:
    text = page_of(example_results()).text
    assert "a tolerance of 0.25 pp needs at least 1080" in text
    assert "python train.py workload=digits seed=0" in text
    assert "modelled (every energy in this report)" in text
    assert (
        "python train.py workload=digits agent=ppo"
        in page_of({**example_results(), "command": "python train.py workload=digits agent=ppo"}).text
    )


def test_an_interrupted_run_says_so_and_what_it_lacks() -> None:
    page = page_of(interrupted_results())
    assert "This run is not finished (status: interrupted)" in page.text
    assert "the run ended before a certificate" in page.text
    assert "No learning curve is recorded" in page.text
    assert len(page.images) == len(FIGURES) - 1


def test_the_least_a_run_can_leave_still_makes_a_page() -> None:
    page = page_of(bare_results())
    assert page.images == []
    assert "No tolerance is recorded" in page.text


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_an_interrupted_run_lacks_the_page_is_made(data: st.DataObject) -> None:
    results = interrupted_results() if data.draw(st.booleans()) else example_results()
    optional = sorted(set(results) - {"schema", "workload", "provenance"})
    for key in data.draw(st.sets(st.sampled_from(optional))):
        results[key] = None
    plan = results["plans"] and data.draw(st.sampled_from(results["plans"]))
    if plan:
        for key in data.draw(st.sets(st.sampled_from(sorted(set(plan) - {"method"})))):
            plan[key] = None
    assert "What is deployed" in page_of(results).text


# --- files ----------------------------------------------------------------------------------------------


def test_write_report_leaves_the_page_and_every_figure_and_nothing_else(tmp_path: Path) -> None:
    write_report(tmp_path / "new", read(example_results()))
    names = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*"))
    assert names == sorted([*(f"figures/{name}.png" for name in FIGURES), "report.html"])
    page = Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    shown = [base64.b64decode(address.split(",")[1]) for address in page.addresses]
    assert shown == [(tmp_path / "new" / "figures" / f"{name}.png").read_bytes() for name in FIGURES]


def test_a_report_that_cannot_be_written_is_one_line_and_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*report\.html") as caught:
        write_report(tmp_path, read(bare_results()))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_run_folder_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "run", read(bare_results()))


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_draws_the_report_again_from_the_results_file(tmp_path: Path) -> None:
    run_dir = run_dir_with(tmp_path, interrupted_results())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "scripts.report", str(run_dir)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(run_dir / "report.html")
    assert (run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json: No such file"),
        ("{", "are not valid JSON"),
        ("[" * 100_000, "are not valid JSON"),
        ("\udcff", "are not valid JSON"),
        ("[1]", "are a JSON list, not an object"),
        ("{}", "results schema None is not 2"),
        ('{"schema": 1}', "results schema 1 is not 2; run train.py again"),
        ('{"schema": 3}', "results schema 3 is not 2"),
        ('{"schema": 2}', "results.workload is None"),
        ('{"schema": 2, "workload": "w"}', "results.provenance is None"),
        (
            '{"schema": 2, "workload": "w", "provenance": "guessed"}',
            "must be one of measured, estimated, modelled",
        ),
        ('{"schema": 2, "workload": "w", "provenance": "modelled", "sed": 1}', "'sed'"),
    ],
)
def test_results_that_are_missing_or_malformed_end_in_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_half_a_surrogate_pair_in_a_name_does_not_stop_the_report(tmp_path: Path) -> None:
    write_report(tmp_path, read({**bare_results(), "workload": "digits \ud800"}))
    assert "digits ?" in (tmp_path / "report.html").read_text(encoding="utf-8")
