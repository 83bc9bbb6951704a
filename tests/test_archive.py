"""The archive only gets better; the journal loses nothing that was known."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import PRECISIONS, FormulaEvaluator, all_plans, make_outcome, make_profile

from agents.archive import Archive, ArchivingEvaluator, Journal
from agents.stopping import BudgetSpent
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from wattbit.errors import OutputError
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(3, PRECISIONS[:4])
PLANS = list(all_plans(PROFILE))
REFERENCE = make_outcome(PROFILE.reference_plan, 1.0)


def plan(index: int) -> PrecisionPlan:
    return PLANS[1:][index]


def archive(*outcomes: Outcome, alpha: float = 0.5) -> Archive:
    made = Archive(REFERENCE, SearchGate(alpha))
    for outcome in outcomes:
        assert made.add(outcome, "method")
    return made


@st.composite
def outcomes(draw: st.DrawFn) -> list[Outcome]:
    chosen = draw(st.lists(st.sampled_from(PLANS[1:]), min_size=1, max_size=12, unique=True))
    return [
        make_outcome(
            each,
            draw(st.floats(0.1, 1.2)),
            lost=draw(st.integers(0, 20)),
            gained=draw(st.integers(0, 5)),
            divergence=draw(st.floats(0.0, 1.0)),
        )
        for each in chosen
    ]


@settings(deadline=None, max_examples=80)
@given(outcomes(), st.floats(0.05, 6.0), st.sampled_from([0.2, 0.5]))
def test_the_result_only_gets_cheaper_and_always_passes_the_gate(
    added: list[Outcome], tolerance: float, alpha: float
) -> None:
    growing = archive(alpha=alpha)
    best_j = growing.best(tolerance).energy_j
    assert best_j == REFERENCE.energy_j
    for outcome in added:
        growing.add(outcome, "method")
        best = growing.best(tolerance)
        assert best.energy_j <= best_j
        assert growing.passes(best, tolerance)
        best_j = best.energy_j
    for outcome in added:
        if SearchGate(alpha).passes(outcome.counts, tolerance):
            assert best_j <= outcome.energy_j


@settings(deadline=None, max_examples=50)
@given(outcomes(), st.floats(0.05, 6.0), st.floats(0.05, 6.0))
def test_a_larger_tolerance_never_costs_more(added: list[Outcome], a: float, b: float) -> None:
    made = archive(*added)
    assert made.best(max(a, b)).energy_j <= made.best(min(a, b)).energy_j


def test_among_equally_cheap_plans_the_least_divergent_wins() -> None:
    far = make_outcome(plan(0), 0.5, divergence=0.2)
    near = make_outcome(plan(1), 0.5, divergence=0.1)
    assert archive(far, near).best(1.0) is near


def test_an_outcome_is_added_once_under_its_first_method() -> None:
    made = archive()
    assert made.add(make_outcome(plan(0), 0.5), "greedy")
    assert not made.add(make_outcome(plan(0), 0.4), "ilp")
    assert made.method(plan(0)) == "greedy"
    assert len(made) == 1
    assert plan(0) in made
    assert plan(1) not in made
    assert made.reference is REFERENCE
    assert made.gate == SearchGate(0.5)


def test_the_reference_passes_any_tolerance_and_a_plan_not_added_is_judged_by_its_counts() -> None:
    made = archive(alpha=0.2)
    assert made.passes(REFERENCE, 1e-6)
    assert not made.passes(make_outcome(plan(0), 0.5), 1e-6)
    assert made.passes(make_outcome(plan(0), 0.5), 2.0)


def test_a_plan_that_breaks_a_hard_limit_is_never_the_result() -> None:
    limited = Archive(REFERENCE, SearchGate(0.5), allowed=lambda outcome: outcome.latency_ms < 450.0)
    limited.add(make_outcome(plan(0), 0.5), "method")
    assert limited.best(1.0) is REFERENCE
    slow, quick = make_outcome(plan(1), 0.46), make_outcome(plan(2), 0.4)
    limited.add(slow, "method")
    limited.add(quick, "method")
    assert limited.best(1.0) is quick
    assert not limited.allows(slow)


# A method's own count.


def test_a_method_is_charged_for_every_plan_it_asks_for_once() -> None:
    inner, own = FormulaEvaluator(PROFILE), archive()
    inner.evaluate(plan(0))  # another method was here first
    evaluator = ArchivingEvaluator(inner, "mine", (own,))
    for index in (0, 1, 1, 0):
        evaluator.evaluate(plan(index))
    assert evaluator.evaluations == 2
    assert [o.plan for o in own] == [plan(0), plan(1)]
    assert own.method(plan(0)) == "mine"
    assert evaluator.profile is PROFILE


def test_a_budget_refuses_the_first_plan_too_many_before_it_runs() -> None:
    inner = FormulaEvaluator(PROFILE)
    evaluator = ArchivingEvaluator(inner, "mine", (), budget=2)
    evaluator.charge([plan(5)])
    evaluator.evaluate(plan(0))
    with pytest.raises(BudgetSpent, match="mine has evaluated 2 plans"):
        evaluator.evaluate(plan(1))
    evaluator.evaluate(plan(0))
    evaluator.evaluate(plan(5))
    assert plan(1) not in inner.ran


@pytest.mark.parametrize(
    ("asked", "evaluated"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 5, 0, 2, 0], [2, 5, 0, 2, 0]),  # 5 is paid for, and doubles are free
        ([], []),
        ([0, 1, 0, 2, 3, 0], None),
    ],
)
def test_a_list_is_evaluated_in_its_order_as_far_as_the_budget_goes(
    asked: list[int], evaluated: list[int] | None
) -> None:
    inner, own = FormulaEvaluator(PROFILE), archive()
    evaluator = ArchivingEvaluator(inner, "mine", (own,), budget=4)
    evaluator.charge([plan(5)])
    plans = [plan(index) for index in asked]
    if evaluated is None:
        with pytest.raises(BudgetSpent, match="mine has evaluated 4 plans"):
            evaluator.evaluate_all(plans)
        assert [o.plan for o in own] == [plan(0), plan(1), plan(2)]
        assert plan(3) not in inner.ran
    else:
        assert [o.plan for o in evaluator.evaluate_all(plans)] == plans
        assert {o.plan for o in own} == set(plans)
        assert evaluator.evaluations == len({*asked, 5})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 8), max_size=20), st.integers(0, 8))
def test_a_list_costs_and_archives_what_its_plans_do_one_by_one(asked: list[int], budget: int) -> None:
    archives = archive(), archive()
    together, single = (
        ArchivingEvaluator(FormulaEvaluator(PROFILE), "mine", (own,), budget) for own in archives
    )
    refused = []
    runs: tuple[Callable[[], object], ...] = (
        lambda: together.evaluate_all([plan(index) for index in asked]),
        lambda: [single.evaluate(plan(index)) for index in asked],
    )
    for run in runs:
        try:
            run()
        except BudgetSpent as spent:
            refused.append(str(spent))
    assert len(refused) in (0, 2)
    assert len(set(refused)) <= 1
    assert list(archives[0]) == list(archives[1])
    assert together.evaluations == single.evaluations


# The journal.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.jsonl"


def write(path: Path, count: int = 3) -> list[Outcome]:
    evaluator = FormulaEvaluator(PROFILE)
    written = [evaluator.evaluate(plan(index)) for index in range(count)]
    with Journal(path) as journal:
        for outcome in written:
            journal.append(outcome, "greedy")
    return written


def test_what_is_written_is_read_again(path: Path) -> None:
    written = write(path)
    assert Journal(path).read(PROFILE) == [(outcome, "greedy") for outcome in written]


def test_a_journal_that_is_not_there_is_empty(path: Path) -> None:
    assert Journal(path).read(PROFILE) == []
    assert not path.exists()


def test_an_outcome_is_on_disk_as_soon_as_it_is_known(path: Path) -> None:
    journal = Journal(path)
    journal.append(make_outcome(plan(0), 0.5), "greedy")
    assert len(path.read_text().splitlines()) == 1
    journal.close()
    journal.append(make_outcome(plan(1), 0.5), "ilp")
    journal.close()
    journal.close()
    assert [method for _, method in Journal(path).read(PROFILE)] == ["greedy", "ilp"]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_line_torn_anywhere_costs_that_line_alone(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "archive.jsonl"
    written = write(path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(last + 1, len(whole) - 1))])
    journal = Journal(path)
    assert [outcome for outcome, _ in journal.read(PROFILE)] == written[:-1]
    with journal:
        journal.append(written[-1], "greedy")
    assert [outcome for outcome, _ in journal.read(PROFILE)] == written


GOOD = {
    "method": "greedy",
    "precisions": dict(plan(0)),
    "samples": 400,
    "reference_only": 1,
    "plan_only": 0,
    "divergence": 0.1,
}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        "[]",
        "3",
        "null",
        '"text"',
        "\x0b{}",
        "[" * 100_000,
        json.dumps({**GOOD, "divergence": float("nan")}),
        json.dumps({**GOOD, "divergence": None}),
        json.dumps({**GOOD, "samples": 0}),
        json.dumps({**GOOD, "samples": "400"}),
        json.dumps({**GOOD, "precisions": {"block.0": "int8"}}),
        json.dumps({**GOOD, "precisions": {**plan(0), "block.1": "int2"}}),
        json.dumps({**GOOD, "precisions": {**plan(0), "block.1": "int9"}}),
        json.dumps({**GOOD, "precisions": [1]}),
        json.dumps({key: value for key, value in GOOD.items() if key != "method"}),
    ],
    ids=range(17),
)
def test_a_damaged_line_in_the_middle_is_named_in_one_line(path: Path, line: str) -> None:
    write(path)
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OutputError, match=r"archive.jsonl line 2 is damaged .*remove that line") as refused:
        Journal(path).read(PROFILE)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_damage_too(path: Path) -> None:
    write(path)
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    with pytest.raises(OutputError, match="line 1 is damaged"):
        Journal(path).read(PROFILE)


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*No such file.*choose another folder"):
        Journal(tmp_path / "missing" / "archive.jsonl").append(REFERENCE, "greedy")


def test_a_journal_that_cannot_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-5])

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(OutputError, match=r"cannot read .*Permission denied"):
        Journal(path).read(PROFILE)
