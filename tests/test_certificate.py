"""Judging plans, testing several on one split, and the certificate as a document."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wattbit.errors import BundleError, DataError, GuardrailError, PlanError
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import (
    Candidate,
    Certificate,
    Judgement,
    array_fingerprint,
    certify_sequence,
    feasible_before_search,
    judge,
)
from wattbit.judging.noninferiority import PairedCounts, accepts

ONE_PP = Guardrail(1.0)


def outcomes(samples: int, lost: int, gained: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes of a reference that is right on all but the last tenth, and of a plan that differs as told."""
    reference = np.arange(samples) < samples - max(gained, samples // 10)
    plan = reference.copy()
    plan[:lost] = False
    plan[samples - gained :] = True
    return reference, plan


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


# --- Several plans -----------------------------------------------------------------------------------------


def test_testing_stops_at_the_first_plan_that_does_not_pass() -> None:
    reference, good = outcomes(5000, 5, 5)
    _, bad = outcomes(5000, 100, 0)
    judgements = certify_sequence(
        reference, [Candidate("a", good), Candidate("b", bad), Candidate("c", good)], None, ONE_PP
    )
    assert list(judgements) == ["a", "b", "c"]
    assert [judgement.verdict for judgement in judgements.values()] == ["pass", "fail", "inconclusive"]
    assert judgements["c"] == Judgement(
        "inconclusive", ("not tested: an earlier plan in the fixed sequence did not pass",)
    )


def test_a_plan_set_aside_for_a_hard_limit_does_not_end_the_sequence() -> None:
    reference, good = outcomes(5000, 5, 5)
    candidates = [Candidate("slow", good, latency_ms=9.0), Candidate("fast", good, latency_ms=1.0)]
    judgements = certify_sequence(reference, candidates, None, Guardrail(1.0, max_latency_ms=5.0))
    assert judgements["slow"].verdict == "fail"
    assert judgements["slow"].samples == 0
    assert judgements["fast"].verdict == "pass"


def test_each_plan_may_have_a_tolerance_of_its_own() -> None:
    reference, plan = outcomes(5000, 50, 10)  # A drop of 0.8 pp.
    candidates = [Candidate("loose", plan, tolerance_pp=2.0), Candidate("tight", plan, tolerance_pp=0.5)]
    judgements = certify_sequence(reference, candidates, None, ONE_PP)
    assert (judgements["loose"].verdict, judgements["loose"].tolerance_pp) == ("pass", 2.0)
    assert (judgements["tight"].verdict, judgements["tight"].tolerance_pp) == ("fail", 0.5)


def test_a_plan_twice_in_a_sequence_is_refused() -> None:
    reference, plan = outcomes(500, 0, 0)
    with pytest.raises(PlanError, match="twice"):
        certify_sequence(reference, [Candidate("a", plan), Candidate("a", plan)], None, ONE_PP)


def test_the_chance_of_any_false_pass_is_alpha_though_many_plans_are_tested() -> None:
    # Eight plans that all lose exactly the tolerance, independently: one test each would pass some plan in
    # 1 - 0.95^8 = 34 % of the runs.
    rng = np.random.default_rng(11)
    reference = np.ones(400, dtype=bool)
    guardrail = Guardrail(5.0)
    runs, in_sequence, one_by_one = 300, 0, 0
    for _ in range(runs):
        plans = [Candidate(str(index), rng.random(400) >= 0.05) for index in range(8)]
        judgements = certify_sequence(reference, plans, None, guardrail)
        in_sequence += any(judgement.verdict == "pass" for judgement in judgements.values())
        one_by_one += any(
            accepts(PairedCounts.from_correct(reference, plan.outcomes), 0.05, 0.05) for plan in plans
        )
    # 15 expected at the most; three standard deviations of luck allowed.
    assert in_sequence <= 15 + 3 * math.sqrt(runs * 0.05 * 0.95)
    assert one_by_one > 2 * in_sequence


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


# --- The document ------------------------------------------------------------------------------------------


def certificate() -> Certificate:
    reference, good = outcomes(5000, 5, 5)
    _, bad = outcomes(5000, 100, 0)
    guardrail = Guardrail(1.0, per_class_pp={1: 2.5}, max_latency_ms=5.0)
    labels = np.arange(5000) % 2
    plans = [
        Candidate("aa", good, latency_ms=1.5),
        Candidate("bb", bad, latency_ms=1.0),
        Candidate("cc", good, latency_ms=7.0),
    ]
    return Certificate(
        guardrail=guardrail,
        judgements=certify_sequence(reference, plans, labels, guardrail),
        model_fingerprint="m" * 64,
        data_fingerprint=array_fingerprint(labels),
        samples=5000,
        created="2026-01-31T09:00:00Z",
    )


def test_a_certificate_survives_its_json_form() -> None:
    assert Certificate.from_json(certificate().to_json()) == certificate()


def test_only_plans_that_passed_may_run() -> None:
    assert certificate().passed == ("aa",)


def test_a_certificate_holds_no_time_that_was_not_given() -> None:
    data = json.loads(certificate().to_json())
    assert data["created"] == "2026-01-31T09:00:00Z"
    assert Certificate(ONE_PP, {}, "m", "d", 1).created is None


def changed(path: str, value: Any) -> str:
    data = json.loads(certificate().to_json())
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("schema", KeyError),
        ("split", "test"),
        ("samples", "many"),
        ("samples", -1),
        ("created", 7),
        ("model_fingerprint", None),
        ("data_fingerprint", KeyError),
        ("extra", 1),
        ("judgements", []),
        ("judgements.aa", {}),
        ("judgements.aa.verdict", "passed"),
        ("judgements.aa.reasons", "fine"),
        ("judgements.aa.drop_pp", "0"),
        ("judgements.aa.upper_pp", True),
        ("judgements.aa.needed_samples", 1.5),
        ("judgements.aa.counts", {"samples": 5}),
        ("judgements.aa.counts.samples", 1),
        ("judgements.aa.extra", 1),
        ("guardrail.tolerance_pp", 0),
        ("guardrail.alpha", KeyError),
        ("guardrail", None),
    ],
)
def test_a_garbled_certificate_is_refused_in_one_line(path: str, value: Any) -> None:
    with pytest.raises(BundleError) as caught:
        Certificate.from_json(changed(path, value))
    assert "export the bundle again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"schema": 1, "schema": 1}', "[" * 100_000, '{"schema": NaN}']
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        Certificate.from_json(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("judgements.bb.verdict", "pass"),
        ("judgements.cc.verdict", "pass"),
        ("judgements.aa.counts.reference_only", 60),
        ("judgements.aa.tolerance_pp", 0.01),
        ("judgements.aa.tolerance_pp", None),
        ("judgements.aa.counts", None),
    ],
)
def test_a_pass_that_its_own_figures_contradict_is_refused(path: str, value: Any) -> None:
    text = changed(path, value)
    if path == "judgements.aa.counts":
        data = json.loads(text)
        data["judgements"]["aa"]["upper_pp"] = 1.5
        text = json.dumps(data)
    with pytest.raises(BundleError, match="marked as passed"):
        Certificate.from_json(text)


# --- Fingerprints ------------------------------------------------------------------------------------------


def test_the_fingerprint_knows_values_type_shape_and_order() -> None:
    a, b = np.arange(6), np.arange(6, 12)
    prints = {
        array_fingerprint(a),
        array_fingerprint(a.astype(np.int32)),
        array_fingerprint(a.reshape(2, 3)),
        array_fingerprint(a, b),
        array_fingerprint(b, a),
        array_fingerprint(np.concatenate([a, b])),
        array_fingerprint(np.array(0)),
        array_fingerprint(np.array([0])),
    }
    assert len(prints) == 8


def test_the_fingerprint_knows_nothing_of_memory_layout_or_byte_order() -> None:
    array = np.arange(12, dtype="<i4").reshape(3, 4)
    assert array_fingerprint(np.asfortranarray(array)) == array_fingerprint(array)
    assert array_fingerprint(array.astype(">i4")) == array_fingerprint(array)
    assert array_fingerprint(array[:, ::2]) == array_fingerprint(array[:, ::2].copy())


def test_an_array_of_objects_has_no_fingerprint() -> None:
    with pytest.raises(DataError, match="object"):
        array_fingerprint(np.array([object()]))


def test_certifying_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "import wattbit.audit.log, wattbit.serving.monitor\n"
        "from wattbit.judging.certificate import judge\n"
        "from wattbit.guardrail import Guardrail\n"
        "right = np.ones(500, dtype=bool)\n"
        "print(judge(right, right, None, Guardrail(1.0, strict=True)).verdict)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "pass", done.stderr
