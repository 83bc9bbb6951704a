"""Methods are compared at equal cost, and nothing that was found is ever lost."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from synthetic import Comparisons, FormulaEvaluator, all_plans, make_outcome, make_profile

from agents.baselines import ILP, Greedy, Random, Uniform
from agents.search_comparison import SearchComparison
from agents.search_method import SearchTask
from agents.stopping import StopRule
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(3)
PLANS = list(all_plans(PROFILE))[1:]


@dataclass
class Scripted:
    """A method that asks for given plans, whatever its budget."""

    name: str
    plans: Iterable[PrecisionPlan]
    asked: list[PrecisionPlan] = field(default_factory=list)
    task: SearchTask | None = None

    def search(self, task: SearchTask) -> None:
        """Ask for every plan."""
        self.task = task
        for plan in self.plans:
            task.evaluator.evaluate(plan)
            self.asked.append(plan)
            task.report(len(self.asked), task.budget, "")


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Comparisons]:
    comparisons = Comparisons(tmp_path)
    yield comparisons
    comparisons.close()


def journal_lines(compare: Comparisons) -> list[tuple[str, PrecisionPlan]]:
    return [(method, outcome.plan) for outcome, method in compare.entries(PROFILE)]


def test_each_method_is_judged_by_its_own_plans_at_its_own_cost(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE))
    assert comparison.run(Scripted("first", PLANS[:4]), 10, 0)
    assert comparison.run(Scripted("second", PLANS[2:5]), 10, 0)
    first, second = comparison.runs
    assert [o.plan for o in first.archive] == PLANS[:4]
    assert [o.plan for o in second.archive] == PLANS[2:5]
    assert (first.evaluations, second.evaluations) == (4, 3)
    assert [o.plan for o in comparison.archive] == PLANS[:5]
    assert comparison.archive.method(PLANS[3]) == "first"
    assert second.seconds >= 0.0


def test_what_another_method_ran_before_costs_no_time_but_counts(compare: Comparisons) -> None:
    evaluator = FormulaEvaluator(PROFILE)
    comparison = compare.make(evaluator)
    comparison.run(Scripted("first", PLANS[:4]), 10, 0)
    ran = len(evaluator.ran)
    comparison.run(Scripted("second", PLANS[:4]), 10, 0)
    assert len(evaluator.ran) == ran
    assert comparison.runs[1].evaluations == 4


def test_no_method_gets_a_plan_more_than_its_budget(compare: Comparisons) -> None:
    evaluator = FormulaEvaluator(PROFILE)
    comparison = compare.make(evaluator)
    greedy_for_plans = Scripted("rogue", PLANS)
    assert comparison.run(greedy_for_plans, 7, 0)
    assert greedy_for_plans.asked == PLANS[:7]
    assert comparison.runs[0].evaluations == 7
    assert len(evaluator.ran) == 7 + 1


def test_a_seeded_method_starts_from_the_common_archive_and_answers_for_all_of_it(
    compare: Comparisons,
) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE))
    comparison.run(Scripted("first", PLANS[:4]), 10, 0)
    seeded = Scripted("ppo", PLANS[3:9])
    assert comparison.run(seeded, 6, 0, seeded=True)
    assert seeded.task is not None
    assert seeded.task.archive is comparison.archive
    assert seeded.task.evaluator.evaluations == 6
    assert comparison.runs[1].archive is comparison.archive
    assert comparison.runs[1].evaluations == 9


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_search_keeps_everything(compare: Comparisons, after: int) -> None:
    evaluator, stop = FormulaEvaluator(PROFILE), StopRule()
    comparison = compare.make(evaluator, stop)

    def interrupt(plan: PrecisionPlan) -> None:
        if len(evaluator.ran) == after:  # the reference among them
            stop.request()

    evaluator.before_run = interrupt
    if after == 0:
        stop.request()
    assert not comparison.run(Scripted("method", PLANS), 50, 0)
    found = [o.plan for o in comparison.archive]
    assert found == PLANS[:after]
    assert [o.plan for o in comparison.runs[0].archive] == found
    assert [plan for _, plan in journal_lines(compare)] == found
    assert stop.status == "interrupted"
    assert not comparison.run(Scripted("next", PLANS), 50, 0)
    assert comparison.runs[1].evaluations == 0


def test_a_time_limit_ends_the_search(compare: Comparisons, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    evaluator, stop = FormulaEvaluator(PROFILE), StopRule(3.5)
    comparison = compare.make(evaluator, stop)

    def take_a_second(plan: PrecisionPlan) -> None:
        nonlocal now
        now += 1.0

    evaluator.before_run = take_a_second
    assert not comparison.run(Scripted("slow", PLANS), 50, 0)
    assert len(comparison.archive) == 4
    assert stop.status == "time limit"


def test_a_resumed_search_runs_no_plan_twice_and_gives_no_method_more_budget(compare: Comparisons) -> None:
    evaluator, stop = FormulaEvaluator(PROFILE), StopRule()
    first = compare.make(evaluator, stop)
    first.run(Scripted("baseline", PLANS[:5]), 10, 0)
    evaluator.before_run = lambda plan: stop.request() if plan == PLANS[7] else None
    # Three plans are the baseline's already; the method is to be charged for them all the same.
    assert not first.run(Scripted("ppo", PLANS[2:20]), 8, 0, seeded=True)
    assert first.runs[-1].evaluations == 8

    known = [outcome for outcome, _ in compare.entries(PROFILE)]
    again = FormulaEvaluator(PROFILE, known=known)
    second = compare.make(again)
    assert [o.plan for o in second.archive] == PLANS[:8]
    assert second.run(Scripted("baseline", PLANS[:5]), 10, 0)
    assert second.runs[0].evaluations == 5
    resumed = Scripted("ppo", PLANS[8:20])
    assert second.run(resumed, 8, 0, seeded=True)
    assert resumed.asked == PLANS[8:10]  # six were spent before
    assert again.ran == [PROFILE.reference_plan, *PLANS[8:10]]
    lines = journal_lines(compare)
    assert len(lines) == len(set(lines))
    assert [plan for method, plan in lines if method == "ppo"] == PLANS[2:10]
    assert second.archive.method(PLANS[3]) == "baseline"


@dataclass
class AllAtOnce(Scripted):
    """A method that asks for all its plans together."""

    def search(self, task: SearchTask) -> None:
        """Ask for every plan at once."""
        self.asked = [outcome.plan for outcome in task.evaluator.evaluate_all(list(self.plans))]


def test_plans_asked_for_together_cost_what_they_cost_one_by_one(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE))
    method = AllAtOnce("together", [*PLANS[:50], *PLANS[20:60]])
    assert comparison.run(method, 60, 0)
    assert method.asked == [*PLANS[:50], *PLANS[20:60]]
    assert comparison.runs[0].evaluations == 60
    assert {o.plan for o in comparison.runs[0].archive} == set(PLANS[:60])
    assert sorted(plan.plan_id for _, plan in journal_lines(compare)) == sorted(
        plan.plan_id for plan in PLANS[:60]
    )


def test_plans_asked_for_together_are_kept_as_far_as_the_budget_goes(compare: Comparisons) -> None:
    evaluator = FormulaEvaluator(PROFILE)
    comparison = compare.make(evaluator)
    assert comparison.run(AllAtOnce("rogue", PLANS), 40, 0)
    assert {o.plan for o in comparison.archive} == set(PLANS[:40])
    assert len(journal_lines(compare)) == 40
    assert len(evaluator.ran) == 40 + 1


def test_an_interruption_amid_plans_asked_for_together_loses_none_that_was_kept(compare: Comparisons) -> None:
    evaluator, stop = FormulaEvaluator(PROFILE), StopRule()
    comparison = compare.make(evaluator, stop)
    evaluator.before_run = lambda plan: stop.request() if len(evaluator.ran) == 40 else None
    assert not comparison.run(AllAtOnce("method", PLANS[:90]), 200, 0)
    found = [o.plan for o in comparison.archive]
    assert 40 <= len(found) < 90
    assert found == [plan for _, plan in journal_lines(compare)]
    known = [outcome for outcome, _ in compare.entries(PROFILE)]
    again = FormulaEvaluator(PROFILE, known=known)
    assert compare.make(again).run(AllAtOnce("method", PLANS[:90]), 200, 0)
    assert not set(again.ran) & set(found)


def test_outcomes_on_another_number_of_samples_are_not_mixed_in(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE, samples=1000))
    outcome = make_outcome(PLANS[0], 1e-6, samples=400)
    with pytest.raises(ConfigError, match=r"searched on 400 samples, this one on 1000; use the same"):
        comparison.restore([(outcome, "greedy")])


def test_whoever_listens_hears_of_each_new_plan_once(compare: Comparisons) -> None:
    heard: list[tuple[PrecisionPlan, str]] = []
    reports: list[tuple[str, int, int, str]] = []
    comparison = compare.make(FormulaEvaluator(PROFILE))
    comparison.on_new = lambda outcome, method: heard.append((outcome.plan, method))
    comparison.listener = lambda *report: reports.append(report)
    comparison.run(Scripted("first", PLANS[:2]), 10, 0)
    comparison.run(Scripted("second", PLANS[1:3]), 10, 0)
    assert heard == [(PLANS[0], "first"), (PLANS[1], "first"), (PLANS[2], "second")]
    assert reports == [
        ("first", 1, 10, ""),
        ("first", 2, 10, ""),
        ("second", 1, 10, ""),
        ("second", 2, 10, ""),
    ]


def test_hard_limits_hold_in_every_archive(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE), allowed=lambda outcome: False)
    comparison.run(Uniform(), 10, 0)
    for archive in (comparison.archive, comparison.runs[0].archive):
        assert archive.best(50.0) is comparison.reference


def run_baselines(comparison: SearchComparison) -> float:
    for method in (Uniform(), Greedy(), ILP(), Random()):
        comparison.run(method, 12, 0)
    return comparison.pp_per_nat()


def test_points_per_nat_are_learned_from_what_was_run(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE, pp_per_nat=60.0))
    assert comparison.pp_per_nat() == 10.0
    assert run_baselines(comparison) == pytest.approx(60.0, rel=0.5)


def test_points_per_nat_are_the_same_when_a_search_is_resumed(compare: Comparisons) -> None:
    first = compare.make(FormulaEvaluator(PROFILE))
    learned = run_baselines(first)
    first.run(Scripted("ppo", PLANS), 200, 0, seeded=True)
    second = compare.make(FormulaEvaluator(PROFILE))
    assert len(second.archive) == len(first.archive)
    assert run_baselines(second) == learned
