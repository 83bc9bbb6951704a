"""The pooled gate: divergence lends strength to few samples, and the luck of the luckiest is taken out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_outcome, make_profile

from agents.archive import Archive
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from envs.pooled_gate import PooledGate
from wattbit.errors import ConfigError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan

SAMPLES = 1000
PROFILE = make_profile(4)


def outcome(divergence: float, lost: int, gained: int = 0) -> Outcome:
    """An outcome of which only this matters."""
    plan = PROFILE.reference_plan
    return make_outcome(plan, 1.0, lost=lost, gained=gained, divergence=divergence, samples=SAMPLES)


def drawn(seed: int, count: int = 60) -> tuple[list[Outcome], np.ndarray]:
    """Outcomes whose true drop is 20 pp a nat but for a third, and their true drops (pp)."""
    rng = np.random.default_rng(seed)
    divergence = np.exp(rng.uniform(math.log(1e-3), math.log(0.3), count))
    true_pp = 20.0 * divergence * np.exp(rng.normal(0.0, 0.3, count))
    gained = rng.binomial(SAMPLES, 0.003, count)
    lost = rng.binomial(SAMPLES - gained, true_pp / 100.0 + 0.003)
    rows = zip(divergence, lost, gained, strict=True)
    return [outcome(float(d), int(b), int(c)) for d, b, c in rows], true_pp


def test_of_two_plans_with_the_same_counts_the_less_divergent_is_judged_milder() -> None:
    outcomes, _ = drawn(0)
    near, far = outcome(0.002, 4), outcome(0.1, 4)
    *_, near_pp, far_pp = PooledGate().bounds_pp([*outcomes, near, far])
    assert near_pp < far_pp


def test_a_plan_that_was_lucky_is_judged_worse_than_what_was_seen() -> None:
    outcomes, _ = drawn(1)
    lucky = outcome(0.2, 0)  # about 4 pp are to be expected of it
    shrunk = PooledGate(fresh_alpha=0.5).bounds_pp([*outcomes, lucky])[-1]
    assert shrunk > lucky.drop_pp


def test_a_harmless_plan_passes_where_its_own_samples_are_too_few() -> None:
    outcomes, _ = drawn(2)
    harmless = outcome(1e-4, 0)
    assert PooledGate().bounds_pp([*outcomes, harmless])[-1] < 0.25
    assert SearchGate(0.05).bound_pp(harmless.counts) > 0.25


@pytest.mark.parametrize("seed", range(5))
def test_fresh_data_seldom_show_more_than_the_bound(seed: int) -> None:
    outcomes, true_pp = drawn(seed, 400)
    bounds = np.array(PooledGate(fresh_alpha=0.05).bounds_pp(outcomes))
    fresh = np.random.default_rng(99).binomial(2 * SAMPLES, true_pp / 100.0) / (2 * SAMPLES) * 100.0
    assert (fresh > bounds).mean() <= 0.05


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.integers(0, SAMPLES // 2), st.integers(0, SAMPLES // 2)),
        max_size=30,
    ),
    st.floats(0.001, 0.5),
)
def test_every_outcome_gets_a_finite_bound_that_grows_with_the_confidence(
    rows: list[tuple[float, int, int]], alpha: float
) -> None:
    outcomes = [outcome(*row) for row in rows]
    loose, strict = (PooledGate(fresh_alpha=a).bounds_pp(outcomes) for a in (0.5, alpha))
    assert len(loose) == len(strict) == len(rows)
    assert all(math.isfinite(a) and b >= a - 1e-9 for a, b in zip(loose, strict, strict=True))


def test_the_order_of_the_plans_does_not_matter() -> None:
    outcomes, _ = drawn(3)
    gate = PooledGate()
    assert gate.bounds_pp(outcomes[::-1])[::-1] == pytest.approx(gate.bounds_pp(outcomes))


def test_few_plans_are_judged_each_by_its_own_samples() -> None:
    outcomes = drawn(4)[0][:5]
    expected = [SearchGate(0.1).bound_pp(o.counts) for o in outcomes]
    assert PooledGate(fresh_alpha=0.1).bounds_pp(outcomes) == expected
    assert PooledGate().bounds_pp([]) == []


def test_one_plan_by_itself_is_judged_as_by_the_search_gate() -> None:
    counts = PairedCounts(400, 3, 1)
    assert PooledGate(0.1).bound_pp(counts) == SearchGate(0.1).bound_pp(counts)


def test_an_archive_judges_all_its_plans_anew_when_one_is_added() -> None:
    layers = PROFILE.layer_names
    reference = make_outcome(PROFILE.reference_plan, 2.0, samples=SAMPLES)
    archive = Archive(reference, PooledGate(fresh_alpha=0.05))
    harmless = make_outcome(PrecisionPlan.uniform(layers, "int8"), 1.0, divergence=1e-4, samples=SAMPLES)
    archive.add(harmless, "test")
    assert archive.best(0.25) == reference  # its own samples are too few
    names = ("fp32", "bf16", "int8", "int4")
    for index, drawn_outcome in enumerate(drawn(5, 40)[0]):
        digits = [names[index // 4**place % 4] for place in range(4)]
        plan = PrecisionPlan(dict(zip(layers, digits, strict=True)))
        counts, divergence = drawn_outcome.counts, drawn_outcome.divergence
        archive.add(Outcome(plan, 3.0, 3.0, counts, divergence), "test")
    assert archive.best(0.25) == harmless


@pytest.mark.parametrize("alpha", [0.0, 0.6, float("nan")])
def test_a_level_that_makes_no_sense_is_refused_in_one_line(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"fresh_alpha is .*, must be above 0 and at most 0\.5") as refused:
        PooledGate(fresh_alpha=alpha)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"gate alpha is"):
        PooledGate(alpha)


def test_archives_with_one_judge_agree_on_what_passes() -> None:
    reference = make_outcome(PROFILE.reference_plan, 2.0, samples=SAMPLES)
    common = Archive(reference, PooledGate())
    own = Archive(reference, PooledGate(), judge=common)
    for index, found in enumerate(drawn(6, 40)[0]):
        names = [PROFILE.precisions[index // 3**place % 3] for place in range(4)]
        plan = PrecisionPlan(dict(zip(PROFILE.layer_names, names, strict=True)))
        added = Outcome(plan, 1.0 + index / 100.0, 1.0, found.counts, found.divergence)
        for archive in (own, common) if index % 4 == 0 else (common,):
            archive.add(added, "test")
    for tolerance_pp in (0.25, 0.5, 1.0, 2.0, 5.0):
        assert common.best(tolerance_pp).energy_j <= own.best(tolerance_pp).energy_j
        assert all(own.passes(o, tolerance_pp) is common.passes(o, tolerance_pp) for o in own)
