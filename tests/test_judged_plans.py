"""Plans judged one by one on the same split are counted, and corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judged_plans import JudgedPlans, holm
from wattbit.errors import ConfigError, OutputError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import Judgement, judge
from wattbit.judging.noninferiority import PairedCounts, p_value

RIGHT = np.ones(400, dtype=bool)
LIMITS = Guardrail(5.0)


def judge_loss(lost: int) -> Callable[[Guardrail], Judgement]:
    plan = RIGHT.copy()
    plan[:lost] = False
    return lambda guardrail: judge(RIGHT, plan, None, guardrail)


def judged(
    plans: JudgedPlans, plan_id: str, limits: Guardrail, judge: Callable[[Guardrail], Judgement]
) -> Judgement:
    return plans.correct(plan_id, judge(limits), limits, judge)


def test_the_first_plan_is_judged_as_if_it_were_alone(tmp_path: Path) -> None:
    first = judged(JudgedPlans.read(tmp_path / "judged.json", "split"), "a", LIMITS, judge_loss(12))
    assert first == judge_loss(12)(LIMITS)
    assert first.verdict == "pass"


def test_a_pass_by_luck_does_not_hold_once_many_plans_were_judged(tmp_path: Path) -> None:
    path = tmp_path / "judged.json"
    alone = p_value(PairedCounts(400, 12, 0), 0.05)
    for number in range(1, 21):
        verdict = judged(JudgedPlans.read(path, "split"), str(number), LIMITS, judge_loss(19)).verdict
        assert verdict == "inconclusive"
    last = judged(JudgedPlans.read(path, "split"), "last", LIMITS, judge_loss(12))
    assert 0.05 / 21 < alone < 0.05
    assert last.verdict == "inconclusive"
    assert "this split has judged 21 plans" in last.reasons[0]


def test_the_same_plan_asked_about_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "judged.json"
    for _ in range(30):
        assert judged(JudgedPlans.read(path, "split"), "a", LIMITS, judge_loss(12)).verdict == "pass"


def test_another_split_begins_to_count_anew(tmp_path: Path) -> None:
    path = tmp_path / "judged.json"
    judged(JudgedPlans.read(path, "split"), "a", LIMITS, judge_loss(19))
    assert JudgedPlans.read(path, "another").p_values == {}
    assert len(JudgedPlans.read(path, "split").p_values) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_limits_without_a_p_value_of_their_own_are_corrected_too(tmp_path: Path, strict: bool) -> None:
    limits = Guardrail(5.0, strict=strict, per_class_pp={} if strict else {0: 20.0})
    labels = np.arange(400) % 2

    def judge_plan(lost: int) -> Callable[[Guardrail], Judgement]:
        plan = RIGHT.copy()
        plan[:lost] = False
        return lambda guardrail: judge(RIGHT, plan, labels, guardrail)

    first, path = 11, tmp_path / "judged.json"
    assert judged(JudgedPlans.read(path, "split"), "first", limits, judge_plan(first)).verdict == "pass"
    for number in range(2 if strict else 5):
        judged(JudgedPlans.read(path, "split"), str(number), limits, judge_plan(19))
    again = judged(JudgedPlans.read(path, "split"), "another", limits, judge_plan(first))
    assert again.verdict == "inconclusive"


def test_some_wrong_plan_of_twenty_passes_at_most_at_the_level() -> None:
    # One by one, some of twenty plans at the boundary would pass in about half of the runs.
    rng = np.random.default_rng(3)
    runs, wrong, alone = 100, 0, 0
    for _ in range(runs):
        losses = rng.binomial(400, 0.05, 20).tolist()
        p_values = {str(i): p_value(PairedCounts(400, lost, 0), 0.05) for i, lost in enumerate(losses)}
        wrong += any(p <= 0.05 for p in holm(p_values).values())
        alone += any(p <= 0.05 for p in p_values.values())
    assert wrong <= runs * 0.05 + 3 * math.sqrt(runs * 0.05 * 0.95)
    assert alone > 2 * wrong


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_procedure_rejects(values: list[float]) -> None:
    adjusted = holm({str(index): value for index, value in enumerate(values)})
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
            if (len(values) - rank) * values[index] > alpha:
                break
            rejected.add(str(index))
        assert {name for name, value in adjusted.items() if value <= alpha} == rejected


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"split": "split"}', '{"schema": 2, "split": "split", "p_values": {}}',
     '{"schema": 1, "split": "split", "p_values": {"a": "small"}}'],
)  # fmt: skip
def test_a_damaged_count_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "judged.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="counts the plans judged") as caught:
        JudgedPlans.read(tmp_path / "judged.json", "split")
    assert "\n" not in str(caught.value)


def test_a_plan_that_cannot_be_counted_gets_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="plans must be counted"):
        judged(JudgedPlans(tmp_path / "file" / "judged.json", "split", {}), "a", LIMITS, judge_loss(0))
