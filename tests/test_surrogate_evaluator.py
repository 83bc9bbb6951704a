"""A surrogate in the evaluator's place says what the surrogate says."""

import copy
from itertools import islice

import pytest
from synthetic import FormulaEvaluator, all_plans, make_profile

from agents.surrogate.drop_surrogate import DropSurrogate
from agents.surrogate.plan_arrays import PlanArrays
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError

PROFILE = make_profile(4)


def surrogate_evaluator() -> SurrogateEvaluator:
    evaluator = FormulaEvaluator(PROFILE)
    outcomes = [evaluator.evaluate(plan) for plan in islice(all_plans(PROFILE), 0, None, 17)]
    made = SurrogateEvaluator(PROFILE)
    made.surrogate = DropSurrogate(PROFILE).fit(outcomes)
    return made


def test_its_drops_are_the_predicted_ones() -> None:
    gate = SearchGate(0.5)
    evaluator = surrogate_evaluator()
    assert evaluator.surrogate is not None
    plans = list(islice(all_plans(PROFILE), 0, None, 29))
    drops_pp, _ = evaluator.surrogate.predict(PlanArrays.of(PROFILE).indices(plans))
    for outcome, plan, drop_pp in zip(evaluator.evaluate_all(plans), plans, drops_pp, strict=True):
        assert outcome.plan == plan
        assert gate.bound_pp(outcome.counts) == pytest.approx(drop_pp, abs=0.01)
        assert outcome.energy_j == pytest.approx(PROFILE.plan_energy_j(plan))
        assert outcome.latency_ms == PROFILE.plan_latency_ms(plan)
    assert evaluator.evaluations == 0


def test_environments_around_it_see_a_new_surrogate_at_once() -> None:
    evaluator = surrogate_evaluator()
    env = LayerPrecisionEnv(copy.deepcopy(evaluator))
    assert env.evaluator is evaluator


def test_without_a_surrogate_it_says_so() -> None:
    with pytest.raises(ConfigError, match="surrogate is None"):
        SurrogateEvaluator(PROFILE).evaluate(PROFILE.reference_plan)
