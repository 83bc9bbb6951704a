"""The interval of an energy ratio holds what it says."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.ratio_interval import ratio_interval, t_quantile, t_within


@given(st.integers(1, 40), st.floats(0.01, 0.995))
@settings(deadline=None, max_examples=100)
def test_student_s_t_is_scipy_s(degrees: int, level: float) -> None:
    from scipy.stats import t

    expected = t.ppf((1.0 + level) / 2.0, degrees)
    assert t_quantile(level, degrees) == pytest.approx(expected, rel=1e-8)
    assert t_within(expected, degrees) == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("trials", [2, 4, 5, 7])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(trials: int) -> None:
    chance = np.random.default_rng(trials)
    held = 0
    for _ in range(1_000):
        ratios = [math.exp(chance.normal(-0.7, 0.05)) for _ in range(trials)]
        low, high = ratio_interval(statistics.median(ratios), ratios, 0.95)
        held += low <= math.exp(-0.7) <= high
    assert held >= 930


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=9))
@settings(deadline=None, max_examples=50)
def test_the_interval_is_positive_and_holds_the_median(ratios: list[float]) -> None:
    middle = statistics.median(ratios)
    low, high = ratio_interval(middle, ratios, 0.95)
    assert 0.0 <= low <= middle * (1 + 1e-12)
    assert high >= middle * (1 - 1e-12)
