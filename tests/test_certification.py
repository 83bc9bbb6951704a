"""From the search's plans to certified ones: the order is fixed before anybody looks at ``certify``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import StubModel, all_plans, make_outcome, make_profile

from agents.archive import Archive
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from pipeline.certification import certify_tolerance, fixed_sequence, judge_plan
from wattbit.guardrail import Guardrail
from wattbit.judging.noninferiority import PairedCounts, interval_pp, lower_bound_pp, upper_bound_pp
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(3)
PLANS = list(all_plans(PROFILE))[1:]
REFERENCE = make_outcome(PROFILE.reference_plan, 1.0, samples=1000)


def make_archive(*outcomes: Outcome) -> Archive:
    archive = Archive(REFERENCE, SearchGate())
    for outcome in outcomes:
        archive.add(outcome, "method")
    return archive


def staircase() -> Archive:
    """Cheaper plans lose more samples of 1,000."""
    return make_archive(
        *(
            make_outcome(PLANS[i], 0.9 - 0.05 * i, lost=i, divergence=0.01 * (i + 1), samples=1000)
            for i in range(12)
        )
    )


@st.composite
def archives(draw: st.DrawFn) -> Archive:
    chosen = draw(st.lists(st.sampled_from(PLANS), max_size=12, unique=True))
    return make_archive(
        *(
            make_outcome(
                plan,
                draw(st.sampled_from([0.3, 0.5, 0.7]) | st.floats(0.1, 1.3)),
                lost=draw(st.integers(0, 30)),
                gained=draw(st.integers(0, 5)),
                divergence=draw(st.sampled_from([0.0, 0.1]) | st.floats(0.0, 1.0)),
                samples=1000,
            )
            for plan in chosen
        ),
        *([REFERENCE] if draw(st.booleans()) else []),
    )


@settings(deadline=None, max_examples=150)
@given(archives(), st.floats(0.1, 5.0))
def test_the_sequence_goes_from_most_energy_past_the_result_and_leaves_the_reference_out(
    archive: Archive, tolerance: float
) -> None:
    sequence = fixed_sequence(archive, tolerance)
    result = archive.best(tolerance)
    plans = [outcome.plan for outcome in sequence]
    assert len(set(plans)) == len(plans) <= 14
    assert PROFILE.reference_plan not in plans
    assert [o.energy_j for o in sequence] == sorted((o.energy_j for o in sequence), reverse=True)
    assert all(o.energy_j <= REFERENCE.energy_j for o in sequence)
    assert (result.plan in plans) == (result.plan != PROFILE.reference_plan)
    # What comes after the result was refused by the gate; the least risky comes first.
    risks = [archive.bound_pp(o) for o in sequence if o.energy_j < result.energy_j]
    assert risks == sorted(risks)
    assert all(risk > tolerance for risk in risks)


def test_safer_plans_come_before_the_result() -> None:
    sequence = fixed_sequence(staircase(), 1.0)
    losses = [outcome.counts.reference_only for outcome in sequence]
    assert len(sequence) >= 3
    assert losses[0] == 0
    assert losses == sorted(losses)


def test_a_plan_that_breaks_a_hard_limit_takes_no_place_in_the_sequence() -> None:
    outcomes = list(staircase())
    quick = Archive(REFERENCE, SearchGate(), allowed=lambda o: 0.5e3 < o.latency_ms < 1e3 * 0.72)
    for outcome in outcomes:
        quick.add(outcome, "method")
    sequence = fixed_sequence(quick, 1.0)
    assert sequence
    assert all(0.5e3 < outcome.latency_ms < 1e3 * 0.72 for outcome in sequence)


def test_certification_stops_at_the_first_failure_and_keeps_what_passed_before() -> None:
    archive = staircase()
    sequence = fixed_sequence(archive, 1.0)
    broken = sequence[2].plan
    stub = StubModel(PROFILE, lambda plan: 100 if plan == broken else 0)
    deployment = certify_tolerance(archive, stub.held_out(3000), PROFILE, Guardrail(1.0))
    verdicts = [judgement.verdict for _, judgement in deployment.sequence]
    assert verdicts[:3] == ["pass", "pass", "fail"]
    assert set(verdicts[3:]) <= {"inconclusive"}
    assert all("not tested" in judgement.reasons[0] for _, judgement in deployment.sequence[3:])
    assert deployment.deployed is sequence[1]
    assert deployment.tolerance_pp == 1.0


def test_the_sequence_goes_on_to_cheaper_plans_until_one_does_not_pass() -> None:
    archive = staircase()
    result = archive.best(1.0)
    cheaper = [o for o in fixed_sequence(archive, 1.0) if o.energy_j < result.energy_j]
    assert len(cheaper) >= 3
    stub = StubModel(PROFILE, lambda plan: 100 if plan == cheaper[2].plan else 0)
    deployment = certify_tolerance(archive, stub.held_out(3000), PROFILE, Guardrail(1.0))
    assert deployment.deployed is cheaper[1]


def test_where_everything_passes_the_cheapest_plan_is_deployed() -> None:
    archive = staircase()
    deployment = certify_tolerance(
        archive, StubModel(PROFILE, lambda plan: 0).held_out(3000), PROFILE, Guardrail(1.0)
    )
    assert deployment.deployed is min(archive, key=lambda outcome: outcome.energy_j)


def test_a_plan_that_the_gate_refused_is_tested_where_nothing_else_is_left() -> None:
    archive = make_archive(make_outcome(PLANS[0], 0.5, lost=30, divergence=0.1, samples=1000))
    assert archive.best(1.0) is REFERENCE
    deployment = certify_tolerance(
        archive, StubModel(PROFILE, lambda plan: 0).held_out(3000), PROFILE, Guardrail(1.0)
    )
    assert deployment.deployed is not None
    assert deployment.deployed.plan == PLANS[0]


def test_no_plan_runs_on_the_split_once_the_sequence_has_ended() -> None:
    archive = staircase()
    sequence = fixed_sequence(archive, 1.0)
    stub = StubModel(PROFILE, lambda plan: 500 if plan == sequence[1].plan else 0)
    certify_tolerance(archive, stub.held_out(3000), PROFILE, Guardrail(1.0))
    assert set(stub.asked) == {PROFILE.reference_plan, sequence[0].plan, sequence[1].plan}


def test_where_the_first_plan_fails_the_reference_runs() -> None:
    stub = StubModel(PROFILE, lambda plan: 0 if plan == PROFILE.reference_plan else 500)
    deployment = certify_tolerance(staircase(), stub.held_out(3000), PROFILE, Guardrail(1.0))
    assert deployment.deployed is None


def test_where_nothing_but_the_reference_ran_nothing_is_tested() -> None:
    deployment = certify_tolerance(
        make_archive(), StubModel(PROFILE, lambda plan: 0).held_out(3000), PROFILE, Guardrail(1.0)
    )
    assert deployment.sequence == ()
    assert deployment.deployed is None


def test_among_equally_cheap_plans_that_pass_the_least_divergent_is_deployed() -> None:
    twins = make_archive(
        make_outcome(PLANS[0], 0.5, lost=5, divergence=0.0, samples=1000),
        make_outcome(PLANS[1], 0.5, lost=0, divergence=0.1, samples=1000),
    )
    deployment = certify_tolerance(
        twins, StubModel(PROFILE, lambda plan: 0).held_out(3000), PROFILE, Guardrail(1.0)
    )
    assert deployment.deployed is not None
    assert deployment.deployed.plan == PLANS[0]


@settings(deadline=None, max_examples=40)
@given(archives(), st.floats(0.1, 5.0), st.integers(0, 2**31))
def test_nothing_about_certify_changes_what_is_tested(archive: Archive, tolerance: float, seed: int) -> None:
    """Whatever the split says, the same plans are tested in the same order."""
    before = fixed_sequence(archive, tolerance)
    rng = np.random.default_rng(seed)
    losses: dict[PrecisionPlan, int] = {}

    def lose(plan: PrecisionPlan) -> int:
        return losses.setdefault(plan, int(rng.integers(0, 100)))

    split = StubModel(PROFILE, lose).held_out(500)
    deployment = certify_tolerance(archive, split, PROFILE, Guardrail(tolerance))
    assert [outcome.plan for outcome, _ in deployment.sequence] == [outcome.plan for outcome in before]


def test_every_plan_runs_once_on_a_held_out_split() -> None:
    stub = StubModel(PROFILE, lambda plan: 3 if plan == PROFILE.reference_plan else 7)
    held_out = stub.held_out(100)
    assert stub.asked == []
    assert held_out.counts(PLANS[0]) == held_out.counts(PLANS[0]) == PairedCounts(100, 4, 0)
    assert held_out.reference_accuracy == 0.97
    assert held_out.labels.tolist() == [0] * 100
    assert sorted(map(hash, stub.asked)) == sorted(map(hash, [PROFILE.reference_plan, PLANS[0]]))


@pytest.mark.parametrize(("latency", "verdict"), [(None, "pass"), (1e-12, "fail")])
def test_one_plan_is_judged_with_its_latency_and_memory(latency: float | None, verdict: str) -> None:
    held_out = StubModel(PROFILE, lambda plan: 0).held_out(1000)
    judgement = judge_plan(PLANS[0], held_out, PROFILE, Guardrail(1.0, max_latency_ms=latency))
    assert judgement.verdict == verdict


def test_the_interval_is_two_sided() -> None:
    counts = PairedCounts(1000, 10, 4)
    assert interval_pp(counts) == (lower_bound_pp(counts, 0.025), upper_bound_pp(counts, 0.025))
    low, high = interval_pp(counts)
    assert low < counts.drop_pp < high
