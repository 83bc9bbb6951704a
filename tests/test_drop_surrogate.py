"""The surrogate: it predicts the drop of plans that were not run, and how sure it is of that."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import FormulaEvaluator, make_profile

from agents.surrogate.drop_surrogate import DropSurrogate, FittedSurrogate
from agents.surrogate.plan_arrays import PlanArrays
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator
from wattbit.profile import ModelProfile


@cache
def fitted() -> tuple[ModelProfile, list[Outcome], FittedSurrogate, list[Outcome]]:
    """A surrogate of twenty layers, what it was fitted to, and what it was not."""
    evaluator = SyntheticEvaluator(20, seed=1)
    rng = np.random.default_rng(0)
    # Mostly wide, so that drops lie between 0 and some points.
    drawn = np.unique(rng.choice(4, (400, 20), p=(0.25, 0.5, 0.2, 0.05)), axis=0)
    outcomes = evaluator.evaluate_all(PlanArrays.of(evaluator.profile).plans(rng.permutation(drawn)))
    seen, held_back = outcomes[:150], outcomes[150:]
    return evaluator.profile, seen, DropSurrogate(evaluator.profile).fit(seen), held_back


def test_it_predicts_plans_that_were_not_run_far_better_than_summed_sensitivities_do() -> None:
    profile, seen, surrogate, held_back = fitted()
    drops = np.array([o.drop_pp for o in held_back])
    predicted, _ = surrogate.predict(surrogate.arrays.indices([o.plan for o in held_back]))
    slope = np.median([o.drop_pp / profile.plan_sensitivity(o.plan) for o in seen])
    summed = slope * np.array([profile.plan_sensitivity(o.plan) for o in held_back])
    assert np.abs(predicted - drops).mean() < 0.25 * np.abs(summed - drops).mean()


def test_nine_of_ten_drops_lie_where_it_says_that_nine_of_ten_do() -> None:
    _, _, surrogate, held_back = fitted()
    predicted, std = surrogate.predict(surrogate.arrays.indices([o.plan for o in held_back]))
    inside = np.abs(predicted - [o.drop_pp for o in held_back]) < 1.645 * std
    assert 0.8 < inside.mean() <= 1.0


def test_chances_agree_with_how_often_plans_pass() -> None:
    _, _, surrogate, held_back = fitted()
    tolerances = (1.0, 2.0, 4.0)
    chances = surrogate.feasibility(surrogate.arrays.indices([o.plan for o in held_back]), tolerances)
    assert chances.shape == (len(held_back), 3)
    assert ((chances >= 0.0) & (chances <= 1.0)).all()
    assert (np.diff(chances, axis=1) >= 0.0).all()
    passed = np.array([[o.drop_pp <= t for t in tolerances] for o in held_back])
    assert chances.mean(axis=0) == pytest.approx(passed.mean(axis=0), abs=0.05)


def test_keeping_what_was_learned_before_changes_predictions_little() -> None:
    profile, seen, surrogate, held_back = fitted()
    again = DropSurrogate(profile).fit(seen, previous=surrogate)
    indices = surrogate.arrays.indices([o.plan for o in held_back])
    assert again.predict(indices)[0] == pytest.approx(surrogate.predict(indices)[0], rel=1e-9)


def test_a_prediction_does_not_depend_on_what_else_is_predicted() -> None:
    _, _, surrogate, held_back = fitted()
    indices = surrogate.arrays.indices([o.plan for o in held_back])
    many = np.concatenate([indices] * 12)
    assert surrogate.predict(many)[0][-len(indices) :] == pytest.approx(
        surrogate.predict(indices)[0], rel=1e-3, abs=1e-4
    )
    assert surrogate.predict(indices[:0])[0].shape == (0,)


def test_before_any_outcome_more_sensitive_plans_are_expected_to_lose_more() -> None:
    profile = make_profile(3, conversions=False)
    surrogate = DropSurrogate(profile).fit([])
    indices = np.array(list(product(range(5), repeat=3)))
    predicted, std = surrogate.predict(indices)
    order = np.argsort([profile.plan_sensitivity(plan) for plan in PlanArrays.of(profile).plans(indices)])
    assert (np.diff(predicted[order]) >= -1e-6).all()
    assert (std > 0.0).all()


def test_with_a_gate_it_predicts_the_drop_that_is_judged() -> None:
    profile, seen, surrogate, held_back = fitted()
    gate = SearchGate(0.2)
    indices = surrogate.arrays.indices([o.plan for o in held_back])
    judged = DropSurrogate(profile, gate).fit(seen).predict(indices)[0]
    assert (judged > surrogate.predict(indices)[0]).mean() > 0.95
    assert np.abs(judged - [gate.bound_pp(o.counts) for o in held_back]).mean() < 0.2


@settings(deadline=None, max_examples=25)
@given(layers=st.integers(1, 5), seed=st.integers(0, 10_000), count=st.integers(0, 12))
def test_any_few_outcomes_give_finite_predictions(layers: int, seed: int, count: int) -> None:
    profile = make_profile(layers, seed=seed, missing={0: ("int8",)})
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 2, (count, layers)) * 4
    outcomes = FormulaEvaluator(profile, samples=50).evaluate_all(
        PlanArrays.of(profile).plans(np.unique(drawn, axis=0))
    )
    surrogate = DropSurrogate(profile).fit(outcomes)
    predicted, std = surrogate.predict(drawn)
    assert np.isfinite(predicted).all()
    assert (std > 0.0).all()
    assert np.isfinite(std).all()
