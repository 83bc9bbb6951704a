"""Several plans on one split: tested in order, the family-wise error kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from outcomes import ONE_PP, outcomes

from wattbit.errors import PlanError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import CandidatePlan, Judgement, certify_sequence
from wattbit.judging.noninferiority import PairedCounts, accepts


def test_testing_stops_at_the_first_plan_that_does_not_pass() -> None:
    reference, good = outcomes(5000, 5, 5)
    _, bad = outcomes(5000, 100, 0)
    judgements = certify_sequence(
        reference, [CandidatePlan("a", good), CandidatePlan("b", bad), CandidatePlan("c", good)], None, ONE_PP
    )
    assert list(judgements) == ["a", "b", "c"]
    assert [judgement.verdict for judgement in judgements.values()] == ["pass", "fail", "inconclusive"]
    assert judgements["c"] == Judgement(
        "inconclusive", ("not tested: an earlier plan in the fixed sequence did not pass",)
    )


def test_a_plan_set_aside_for_a_hard_limit_does_not_end_the_sequence() -> None:
    reference, good = outcomes(5000, 5, 5)
    candidates = [CandidatePlan("slow", good, latency_ms=9.0), CandidatePlan("fast", good, latency_ms=1.0)]
    judgements = certify_sequence(reference, candidates, None, Guardrail(1.0, max_latency_ms=5.0))
    assert judgements["slow"].verdict == "fail"
    assert judgements["slow"].samples == 0
    assert judgements["fast"].verdict == "pass"


def test_each_plan_may_have_a_tolerance_of_its_own() -> None:
    reference, plan = outcomes(5000, 50, 10)  # A drop of 0.8 pp.
    candidates = [
        CandidatePlan("loose", plan, tolerance_pp=2.0),
        CandidatePlan("tight", plan, tolerance_pp=0.5),
    ]
    judgements = certify_sequence(reference, candidates, None, ONE_PP)
    assert (judgements["loose"].verdict, judgements["loose"].tolerance_pp) == ("pass", 2.0)
    assert (judgements["tight"].verdict, judgements["tight"].tolerance_pp) == ("fail", 0.5)


def test_a_plan_twice_in_a_sequence_is_refused() -> None:
    reference, plan = outcomes(500, 0, 0)
    with pytest.raises(PlanError, match="twice"):
        certify_sequence(reference, [CandidatePlan("a", plan), CandidatePlan("a", plan)], None, ONE_PP)


def test_the_chance_of_any_false_pass_is_alpha_though_many_plans_are_tested() -> None:
    # Eight plans that all lose exactly the tolerance, independently: one test each would pass some plan in
    # 1 - 0.95^8 = 34 % of the runs.
    rng = np.random.default_rng(11)
    reference = np.ones(400, dtype=bool)
    guardrail = Guardrail(5.0)
    runs, in_sequence, one_by_one = 300, 0, 0
    for _ in range(runs):
        kept = [rng.random(400) >= 0.05 for _ in range(8)]
        plans = [CandidatePlan(str(index), outcome) for index, outcome in enumerate(kept)]
        judgements = certify_sequence(reference, plans, None, guardrail)
        in_sequence += any(judgement.verdict == "pass" for judgement in judgements.values())
        one_by_one += any(
            accepts(PairedCounts.from_correct(reference, outcome), 0.05, 0.05) for outcome in kept
        )
    # 15 expected at the most; three standard deviations of luck allowed.
    assert in_sequence <= 15 + 3 * math.sqrt(runs * 0.05 * 0.95)
    assert one_by_one > 2 * in_sequence
