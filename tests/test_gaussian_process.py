"""The Gaussian process: what theory says of it, and that it learns what its data were drawn with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.surrogate.gaussian_process import WeightPrior, fit_process

Floats = NDArray[np.float64]
PRIOR = WeightPrior(np.log([0.5, 0.5, 0.1]), np.array([2.0, 1.0, 2.0]))


def kernel(a: Floats, b: Floats) -> Floats:
    values: Floats = np.exp(-((a[:, None] - b) ** 2))
    return values


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), points=st.integers(1, 30))
def test_given_weights_the_prediction_is_the_conditional_normal(seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    x, new, targets = rng.uniform(0, 9, points), rng.uniform(0, 9, 5), rng.normal(size=points)
    noise = rng.uniform(0.1, 1.0, points)
    process = fit_process(kernel(x, x)[None], targets, noise, PRIOR, np.log([2.0, 0.5, 0.1]))
    mean, variance = process.predict(2.0 * kernel(new, x), np.full(5, 2.0))
    inverse = np.linalg.inv(2.0 * kernel(x, x) + np.diag(0.5 * noise + 0.1))
    assert mean == pytest.approx(2.0 * kernel(new, x) @ inverse @ targets, rel=1e-3, abs=1e-4)
    expected = 2.0 - 4.0 * np.einsum("ij,jk,ik->i", kernel(new, x), inverse, kernel(new, x))
    assert variance == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_weights_are_learned_from_data_drawn_with_them() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 60.0, 150)
    noise = np.full(150, 0.04)
    drawn = np.linalg.cholesky(4.0 * kernel(x, x) + np.diag(noise)) @ rng.normal(size=150)
    process = fit_process(kernel(x, x)[None], drawn, noise, PRIOR)
    assert 2.0 < process.kernel_weights[0] < 8.0
    assert 0.02 < process.noise_weight * 0.04 + process.nugget < 0.08


def test_without_data_the_prior_is_predicted() -> None:
    process = fit_process(np.empty((1, 0, 0)), np.empty(0), np.empty(0), PRIOR)
    mean, variance = process.predict(np.empty((3, 0)), np.full(3, 0.5))
    assert mean.tolist() == [0.0] * 3
    assert variance == pytest.approx([0.5] * 3)
