"""The drift alarm: silent while the limit holds, at any stopping time, and quick when it does not."""

from __future__ import annotations

import math
import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wattbit.errors import GuardrailError
from wattbit.serving.monitor import BETS, EProcess

LIMIT = 0.007


def fed(process: EProcess, observations: NDArray[np.float64] | list[float]) -> EProcess:
    for x in observations:
        process.update(float(x))
    return process


WEIGHTS, SHARES, MOST = (np.array(column) for column in zip(*BETS, strict=True))


def ever_alarmed(
    rate: float, runs: int, length: int, alpha: float, held_back: float, seed: int, samples: int = 1
) -> int:
    """How many of ``runs`` raise an alarm: the recursion of `EProcess`, for all runs at once.

    The disagreements of an observation's ``samples`` depend on each other as much as they can: all or none.
    """
    stakes = np.tile(WEIGHTS * (1.0 - held_back), (runs, 1))
    bets = np.minimum(SHARES * samples, MOST)
    rng = np.random.default_rng(seed)
    alarmed = np.zeros(runs, dtype=bool)
    for t in range(0, length * samples, samples):
        stakes += WEIGHTS * held_back * 1000.0 * samples / ((t + 1000.0) * (t + samples + 1000.0))
        x = (rng.random(runs) < rate)[:, None]
        stakes *= 1.0 + bets * (x / LIMIT - 1.0)
        alarmed |= stakes.sum(axis=1) + held_back * 1000.0 / (t + samples + 1000.0) >= 1.0 / alpha
    return int(alarmed.sum())


@pytest.mark.parametrize("samples", [1, 32])
def test_samples_of_one_observation_may_all_depend_on_each_other_without_more_false_alarms(
    samples: int,
) -> None:
    alarms = ever_alarmed(LIMIT, 600, 3000, alpha=0.05, held_back=0.25, seed=6, samples=samples)
    assert alarms <= 30 + 3 * math.sqrt(600 * 0.05 * 0.95)


@pytest.mark.parametrize("held_back", [0.0, 0.5])
def test_at_the_limit_an_alarm_in_ten_thousand_looks_is_no_likelier_than_alpha(held_back: float) -> None:
    alarms = ever_alarmed(LIMIT, runs=600, length=10_000, alpha=0.05, held_back=held_back, seed=5)
    # 0.05 * 600 = 30 expected at the most; three standard deviations of luck allowed.
    assert alarms <= 30 + 3 * math.sqrt(600 * 0.05 * 0.95)


def test_the_simulation_computes_what_the_monitor_computes() -> None:
    for samples in (1, 32):
        rng = np.random.default_rng(5)
        process = EProcess(LIMIT)
        while not process.alarm(0.05):
            process.update(float(rng.random(1)[0] < 0.05), samples)
        needed = process.observations // samples
        assert ever_alarmed(0.05, 1, needed, alpha=0.05, held_back=0.25, seed=5, samples=samples) == 1
        assert ever_alarmed(0.05, 1, needed - 1, alpha=0.05, held_back=0.25, seed=5, samples=samples) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.floats(0.001, 0.9))
def test_with_nothing_held_back_the_e_value_is_the_weighted_mean_of_the_products(
    xs: list[float], limit: float
) -> None:
    process = fed(EProcess(limit, held_back=0.0), xs)
    products = [math.prod(1.0 + share * (x / limit - 1.0) for x in xs) for share in SHARES]
    assert process.evalue == pytest.approx(float(WEIGHTS @ products))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=40), st.floats(0.01, 0.9), st.floats(0.0, 0.9))
def test_one_more_fair_observation_leaves_the_expected_e_value_as_it_was(
    xs: list[float], limit: float, held_back: float
) -> None:
    # The property that makes alarms valid at any stopping time (a martingale at the limit).
    now = fed(EProcess(limit, held_back=held_back), xs).evalue
    after_agreement = fed(EProcess(limit, held_back=held_back), [*xs, 0.0]).evalue
    after_disagreement = fed(EProcess(limit, held_back=held_back), [*xs, 1.0]).evalue
    assert limit * after_disagreement + (1.0 - limit) * after_agreement == pytest.approx(now)


@pytest.mark.parametrize(("rate", "within"), [(0.027, 300), (0.057, 100), (0.3, 30), (1.0, 4)])
def test_a_rate_well_above_the_limit_is_found_soon(rate: float, within: int) -> None:
    delays = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        process = EProcess(LIMIT)
        while not process.alarm(0.05):
            process.update(float(rng.random() < rate))
        delays.append(process.observations)
    assert np.median(delays) <= within


def test_a_fault_that_starts_after_a_long_quiet_time_is_found_nearly_as_soon() -> None:
    process = fed(EProcess(LIMIT), np.zeros(20_000))
    plain = fed(EProcess(LIMIT, held_back=0.0), np.zeros(20_000))
    rng = np.random.default_rng(0)
    for _ in range(300):
        x = float(rng.random() < 0.1)
        process.update(x)
        plain.update(x)
    assert process.alarm(0.01)
    # Without wealth held back, the quiet time has used up all of it.
    assert not plain.alarm(0.01)


def test_an_alarm_stays_even_if_evidence_fades() -> None:
    process = fed(EProcess(LIMIT), [1.0] * 5)
    assert process.alarm(0.01)
    fed(process, np.zeros(5000))
    assert process.evalue < 100.0
    assert process.alarm(0.01)


def test_a_fresh_monitor_has_an_e_value_of_one_and_no_alarm() -> None:
    process = EProcess(LIMIT)
    assert process.evalue == pytest.approx(1.0)
    assert process.observations == 0
    assert not process.alarm(0.999)


def test_overwhelming_evidence_is_infinite_rather_than_an_error() -> None:
    process = fed(EProcess(LIMIT), [1.0] * 500)
    assert process.evalue == math.inf
    assert math.isfinite(process.log_evalue)
    assert process.alarm(1e-300)


def test_a_million_agreements_do_not_underflow() -> None:
    process = fed(EProcess(LIMIT, held_back=0.0), np.zeros(30_000))
    assert math.isfinite(process.log_evalue)
    assert process.log_evalue < 0.0


@pytest.mark.parametrize("x", [math.nan, -0.1, 1.1, math.inf])
def test_an_observation_that_is_no_share_is_refused_and_changes_nothing(x: float) -> None:
    process = fed(EProcess(LIMIT), [0.0, 1.0])
    before = process.log_evalue, process.observations
    with pytest.raises(GuardrailError, match="must be from 0 to 1"):
        process.update(x)
    assert (process.log_evalue, process.observations) == before


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, 70.0, math.nan])
def test_a_limit_that_is_no_share_is_refused(limit: float) -> None:
    with pytest.raises(GuardrailError, match="limit"):
        EProcess(limit)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_alarm_level_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(GuardrailError, match="alpha"):
        EProcess(LIMIT).alarm(alpha)


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1.0, exclude_max=True))
def test_the_default_bets_are_allowed_for_every_limit(limit: float) -> None:
    assert fed(EProcess(limit), [0.0, 1.0]).observations == 2


def test_no_observation_is_the_mean_of_no_sample() -> None:
    process = fed(EProcess(LIMIT), [1.0])
    before = process.log_evalue
    with pytest.raises(GuardrailError, match="at least one sample"):
        process.update(0.0, 0)
    assert process.log_evalue == before


def test_an_observation_takes_less_than_twenty_microseconds() -> None:
    process = EProcess(LIMIT)
    best = min(timeit.repeat(lambda: process.update(0.0), number=500, repeat=5)) / 500
    assert best < 20e-6
