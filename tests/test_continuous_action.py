"""Continuous actions: what is acted runs, and the whole reward is that of the plan."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import FormulaEvaluator, make_profile

from envs.continuous_action import ContinuousActionEnv, by_energy
from envs.layer_precision import LayerPrecisionEnv
from wattbit.profile import ModelProfile

PROFILE = make_profile(4, missing={1: ("int8", "int2"), 3: ("bf16",)})


def make_env(profile: ModelProfile = PROFILE) -> ContinuousActionEnv:
    return ContinuousActionEnv(LayerPrecisionEnv(FormulaEvaluator(profile)))


def act(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def play(env: ContinuousActionEnv, values: list[float]) -> tuple[list[float], dict[str, Any]]:
    """The rewards and the last info of an episode at 1 pp."""
    env.reset(seed=0, options={"tolerance_pp": 1.0})
    rewards: list[float] = []
    info: dict[str, Any] = {}
    for value in values:
        _, reward, ended, _, info = env.step(act(value))
        rewards.append(reward)
    assert ended
    return rewards, info


def test_the_wrapped_environment_keeps_to_the_rules_of_gymnasium() -> None:
    check_env(make_env(), skip_render_check=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=4, max_size=4))
def test_what_is_acted_runs_and_is_supported(values: list[float]) -> None:
    env = make_env()
    _, info = play(env, values)
    plan = info["plan"]
    for layer, value in enumerate(values):
        choices = by_energy(PROFILE, layer)
        assert plan[PROFILE.layer_names[layer]] == choices[min(int(value * len(choices)), len(choices) - 1)]


def test_zero_is_the_cheapest_and_one_the_dearest_precision_of_each_layer() -> None:
    _, cheapest = play(make_env(), [0.0] * 4)
    _, dearest = play(make_env(), [1.0] * 4)
    for layer in range(4):
        costs = PROFILE.layers[layer].costs
        energies_j = [cost.energy_j for cost in costs.values()]
        name = PROFILE.layer_names[layer]
        assert costs[cheapest["plan"][name]].energy_j == min(energies_j)
        assert costs[dearest["plan"][name]].energy_j == max(energies_j)


def test_the_whole_reward_comes_at_the_end_and_is_what_the_discrete_environment_gives() -> None:
    values = [0.1, 0.5, 0.9, 0.3]
    rewards, info = play(make_env(), values)
    inner = LayerPrecisionEnv(FormulaEvaluator(PROFILE))
    inner.reset(seed=0, options={"tolerance_pp": 1.0})
    total = sum(float(inner.step(PROFILE.precisions.index(name))[1]) for name in info["plan"].values())
    assert rewards[:-1] == [0.0, 0.0, 0.0]
    assert rewards[-1] == pytest.approx(total)


def test_an_action_outside_the_interval_is_refused_and_not_repaired() -> None:
    env = make_env()
    env.reset(seed=0)
    for value in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="must be from 0"):
            env.step(act(value))


def test_an_episode_that_is_over_takes_no_action() -> None:
    env = make_env()
    play(env, [0.5] * 4)
    with pytest.raises(IndexError, match="reset"):
        env.step(act(0.5))
