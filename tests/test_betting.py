"""The betting bound: it covers the mean as often as promised, at any number of samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.errors import DataError, GuardrailError
from wattbit.judging.betting import betting_upper_bound


@pytest.mark.parametrize("samples", [5, 100, 400])
@pytest.mark.parametrize(
    "kind",
    # Small noise; rare losses, the hardest for asymptotic bounds; skewed noise around a gain.
    ["noise", "rare", "skewed"],
)
def test_the_bound_lies_below_the_mean_no_oftener_than_alpha(samples: int, kind: str) -> None:
    rng = np.random.default_rng(7)
    alpha, runs, misses = 0.1, 300, 0
    for _ in range(runs):
        if kind == "noise":
            mean, differences = 0.01, 0.01 + rng.uniform(-0.1, 0.1, samples)
        elif kind == "rare":
            mean, differences = 0.02, (rng.random(samples) < 0.02).astype(np.float64)
        else:
            mean, differences = -0.1, 0.4 * rng.beta(0.5, 1.5, samples) - 0.2
        misses += betting_upper_bound(differences, alpha) < mean
    # 0.1 * 300 = 30 expected at the most; three standard deviations of luck allowed.
    assert misses <= 30 + 3 * math.sqrt(300 * 0.1 * 0.9)


def test_the_bound_tightens_towards_the_mean_as_samples_grow() -> None:
    rng = np.random.default_rng(0)
    differences = np.clip(rng.normal(0.002, 0.05, 20_000), -1, 1)
    gaps = [betting_upper_bound(differences[:n], 0.05) - 0.002 for n in (200, 2_000, 20_000)]
    assert gaps[0] > gaps[1] > gaps[2]
    # Twice the width that a normal approximation, which promises nothing, would have.
    assert gaps[2] < 2.0 * 1.645 * 0.05 / math.sqrt(20_000)


def test_models_that_never_differ_are_bounded_near_zero() -> None:
    assert 0.0 < betting_upper_bound(np.zeros(10_000), 0.05) < 0.0005


def test_a_plan_that_is_always_worse_or_always_better_is_recognised() -> None:
    assert betting_upper_bound(np.ones(1000), 0.05) == pytest.approx(1.0)
    assert betting_upper_bound(-np.ones(1000), 0.05) < -0.9


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=80), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_is_a_share_at_or_above_the_observed_mean(values: list[float], alpha: float) -> None:
    bound = betting_upper_bound(np.array(values), alpha)
    assert max(-1.0, float(np.mean(values)) - 1e-9) <= bound <= 1.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=80))
def test_a_smaller_alpha_gives_a_larger_bound(values: list[float]) -> None:
    differences = np.array(values)
    assert betting_upper_bound(differences, 0.01) >= betting_upper_bound(differences, 0.2) - 1e-9


def test_the_bound_is_the_same_every_time() -> None:
    differences = np.random.default_rng(1).uniform(-0.2, 0.2, 500)
    assert betting_upper_bound(differences, 0.05) == betting_upper_bound(differences, 0.05)


@pytest.mark.parametrize("values", [[], [math.nan], [1.5], [[0.1]], [0.0, -1.01]])
def test_differences_that_cannot_be_are_refused(values: Any) -> None:
    with pytest.raises(DataError, match="between -1 and 1"):
        betting_upper_bound(np.array(values, dtype=np.float64), 0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.5, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(GuardrailError, match="alpha"):
        betting_upper_bound(np.zeros(3), alpha)
