"""Judging one plan: pass, fail or inconclusive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import ONE_PP, outcomes

from wattbit.errors import DataError, GuardrailError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import feasible_before_search, judge
from wattbit.judging.noninferiority import PairedCounts, accepts

# --- One plan ----------------------------------------------------------------------------------------------


def test_a_plan_whose_drop_is_shown_to_be_small_passes() -> None:
    judgement = judge(*outcomes(5000, 20, 15), None, ONE_PP)
    assert judgement.verdict == "pass"
    assert judgement.counts == PairedCounts(5000, 20, 15)
    assert judgement.drop_pp == pytest.approx(0.1)
    assert judgement.lower_pp is not None
    assert judgement.upper_pp is not None
    assert judgement.lower_pp < 0.1 < judgement.upper_pp < 1.0
    assert judgement.p_value is not None
    assert judgement.p_value <= 0.05


def test_a_plan_that_is_observed_to_lose_the_tolerance_fails() -> None:
    judgement = judge(*outcomes(5000, 60, 10), None, ONE_PP)
    assert judgement.verdict == "fail"
    assert judgement.needed_samples is None
    assert judgement.reasons == ("drop 1 pp reaches the limit of 1 pp: use a more precise plan",)


def test_too_few_samples_are_inconclusive_and_the_judgement_says_how_many_would_do() -> None:
    judgement = judge(*outcomes(200, 0, 0), None, ONE_PP)
    assert judgement.verdict == "inconclusive"
    assert judgement.needed_samples == 299
    assert "about 299 would certify" in judgement.reasons[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(50, 3000), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_plan_passes_if_and_only_if_the_test_accepts(n: int, lost: int, gained: int, strict: bool) -> None:
    lost = min(lost, n // 4)
    gained = min(gained, n // 4)
    judgement = judge(*outcomes(n, lost, gained), None, Guardrail(1.0, strict=strict))
    assert (judgement.verdict == "pass") == accepts(PairedCounts(n, lost, gained), 0.01, 0.05, strict)
    assert (judgement.verdict == "fail") == (100.0 * (lost - gained) / n >= 1.0)


def test_strict_passes_later() -> None:
    pair = outcomes(320, 0, 0)
    assert judge(*pair, None, ONE_PP).verdict == "pass"
    assert judge(*pair, None, Guardrail(1.0, strict=True)).verdict == "inconclusive"


def test_a_broken_hard_limit_fails_a_plan_that_is_accurate() -> None:
    guardrail = Guardrail(1.0, max_latency_ms=5.0)
    pair = outcomes(5000, 0, 0)
    assert judge(*pair, None, guardrail, latency_ms=4.0).verdict == "pass"
    judgement = judge(*pair, None, guardrail, latency_ms=6.0)
    assert judgement.verdict == "fail"
    assert judgement.reasons == ("latency 6 ms is above the limit of 5 ms",)


def test_a_hard_limit_that_nobody_measured_is_never_a_pass() -> None:
    judgement = judge(*outcomes(5000, 0, 0), None, Guardrail(1.0, max_memory_bytes=10))
    assert judgement.verdict == "inconclusive"
    assert "memory is not known" in judgement.reasons[0]


def test_a_class_that_loses_more_than_its_limit_fails_the_plan() -> None:
    reference, plan = outcomes(10_000, 30, 30)
    labels = np.ones(10_000, dtype=np.int64)
    labels[:1000] = 0  # All lost samples are of class 0: its false negatives rise by 3 pp.
    assert judge(reference, plan, labels, ONE_PP).verdict == "pass"
    judgement = judge(reference, plan, labels, Guardrail(1.0, per_class_pp={0: 2.0}))
    assert judgement.verdict == "fail"
    assert "class 0's false negatives 3 pp" in judgement.reasons[0]
    assert judge(reference, plan, labels, Guardrail(1.0, per_class_pp={0: 5.0, 1: 1.0})).verdict == "pass"


def test_a_class_with_too_few_samples_is_inconclusive_and_counts_what_is_needed_in_all() -> None:
    reference, plan = outcomes(10_000, 0, 0)
    labels = (np.arange(10_000) % 100 == 0).astype(np.int64)  # 100 samples of class 1.
    judgement = judge(reference, plan, labels, Guardrail(1.0, per_class_pp={1: 1.0}))
    assert judgement.verdict == "inconclusive"
    # 299 of class 1 are needed, and one sample in 100 is of class 1.
    assert judgement.needed_samples == 29_900


def test_a_class_without_a_sample_is_never_a_pass() -> None:
    reference, plan = outcomes(5000, 0, 0)
    judgement = judge(reference, plan, np.zeros(5000, dtype=np.int64), Guardrail(1.0, per_class_pp={7: 1.0}))
    assert judgement.verdict == "inconclusive"
    assert judgement.reasons == ("class 7 has no sample on this split; add some",)


def test_class_limits_without_labels_are_refused() -> None:
    with pytest.raises(GuardrailError, match="per-class limits need labels"):
        judge(*outcomes(100, 0, 0), None, Guardrail(1.0, per_class_pp={0: 1.0}))


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        judge(*outcomes(100, 0, 0), np.zeros(99, dtype=np.int64), Guardrail(1.0, per_class_pp={0: 1.0}))


# --- Scores ------------------------------------------------------------------------------------------------


def test_scores_pass_fail_or_stay_open_by_the_betting_bound() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.4, 0.9, 5000)
    noise = rng.normal(0.0, 0.02, 5000)
    assert judge(reference, np.clip(reference + noise, 0, 1), None, ONE_PP).verdict == "pass"
    assert judge(reference, np.clip(reference - 0.02 + noise, 0, 1), None, ONE_PP).verdict == "fail"
    few = judge(reference[:50], np.clip(reference + noise, 0, 1)[:50], None, ONE_PP)
    assert few.verdict == "inconclusive"
    assert few.needed_samples is not None
    assert few.needed_samples > 50


def test_as_many_scores_as_asked_for_mostly_do() -> None:
    rng = np.random.default_rng(3)
    reference = rng.uniform(0.4, 0.9, 200_000)
    plan = np.clip(reference - 0.005 + rng.normal(0.0, 0.1, 200_000), 0, 1)
    needed = judge(reference[:300], plan[:300], None, ONE_PP).needed_samples
    assert needed is not None
    passed = [
        judge(reference[start : start + needed], plan[start : start + needed], None, ONE_PP).verdict == "pass"
        for start in range(0, 10 * needed, needed)
        if start + needed <= reference.size
    ]
    assert sum(passed) >= len(passed) / 2


@pytest.mark.parametrize(
    ("reference", "plan"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.array([0.0, math.nan, 0.0])),
        (np.zeros(3), np.full(3, 1.5)),
        (np.zeros((2, 2)), np.zeros((2, 2))),
        (np.zeros(0), np.zeros(0)),
        (np.zeros(3, dtype=bool), np.zeros(3)),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(reference: Any, plan: Any) -> None:
    with pytest.raises(DataError):
        judge(reference, plan, None, ONE_PP)


def test_class_limits_on_scores_are_refused() -> None:
    scores = np.full(100, 0.5)
    with pytest.raises(GuardrailError, match="right or wrong"):
        judge(scores, scores, np.zeros(100, dtype=np.int64), Guardrail(1.0, per_class_pp={0: 1.0}))


# --- Before the search -------------------------------------------------------------------------------------


def test_a_hopeless_tolerance_is_announced_before_the_search() -> None:
    assert feasible_before_search(299, 1.0, 0.05) is None
    message = feasible_before_search(298, 1.0, 0.05)
    assert message is not None
    assert "298 samples certify a tolerance of 1 pp at alpha 0.05 only for a plan that does better" in message
    assert "299 are needed for one that changes no prediction" in message
    # Not so hopeless that a better plan could not pass.
    assert accepts(PairedCounts(298, 0, 1), 0.01, 0.05)
    assert not accepts(PairedCounts(298, 0, 0), 0.01, 0.05)
    assert feasible_before_search(299, 1.0, 0.05, strict=True) is not None
