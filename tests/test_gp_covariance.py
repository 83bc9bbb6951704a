"""Kernels over plans: symmetric, positive semidefinite, and what their names say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_profile

from agents.surrogate.gp_covariance import KERNELS, PlanFeatures
from agents.surrogate.plan_arrays import PlanArrays


def features(layers: int, seed: int, plans: int = 12) -> PlanFeatures:
    indices = np.random.default_rng(seed).integers(0, 5, (plans, layers))
    return PlanFeatures.of(PlanArrays.of(make_profile(layers, seed=seed)), indices)


@settings(deadline=None, max_examples=30)
@given(layers=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_every_kernel_is_a_kernel(layers: int, seed: int) -> None:
    plans = features(layers, seed)
    kernels = plans.kernels(plans)
    assert len(kernels) == len(KERNELS)
    for name, kernel, own in zip(KERNELS, kernels, plans.own_kernels(), strict=True):
        assert kernel == pytest.approx(kernel.T), name
        assert np.diag(kernel) == pytest.approx(own, abs=1e-12), name
        assert np.linalg.eigvalsh(kernel).min() > -1e-9 * len(kernel) * max(1.0, kernel.max()), name


@settings(deadline=None, max_examples=10)
@given(layers=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_half_the_digits_give_nearly_the_same_kernels(layers: int, seed: int) -> None:
    plans = features(layers, seed)
    assert plans.single.kernels(plans.single) == pytest.approx(plans.kernels(plans), rel=1e-4, abs=1e-5)


def test_pairs_are_those_of_layers_with_equal_precision() -> None:
    arrays = PlanArrays.of(make_profile(4))
    plans = PlanFeatures.of(arrays, np.array([[2, 3, 4, 2], [2, 3, 1, 2]]))
    kernels = dict(zip(KERNELS, plans.kernels(plans)[:, 0, 1], strict=True))
    roots = np.sqrt(plans.shares)
    both = roots[0] * roots[1]
    assert kernels["choice"] == pytest.approx((both[[0, 1, 3]] ** 2).sum())
    assert kernels["junction"] == pytest.approx(both[0] * both[1])
    assert kernels["neighbour"] == pytest.approx((both[1:] * both[:-1]).sum())
    assert kernels["pair"] == pytest.approx(both[0] * both[1] + both[0] * both[3] + both[1] * both[3])
