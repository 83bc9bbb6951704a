"""The environment: one episode, one plan; what is chosen is what is run and what is paid for."""

import copy
import math
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv
from synthetic import PRECISIONS, FormulaEvaluator, StubModel, make_profile, make_split

from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError, GuardrailError
from wattbit.plan import PrecisionPlan

MISSING = {0: ("int2",), 2: ("bf16", "int4")}


def make_env(**arguments: Any) -> LayerPrecisionEnv:
    """An environment over a small model that does not support everything everywhere."""
    return LayerPrecisionEnv(FormulaEvaluator(make_profile(4, missing=MISSING)), **arguments)


def play(env: LayerPrecisionEnv, choices: list[int]) -> tuple[list[str], list[float], dict[str, Any]]:
    """Take the allowed action that each choice points at; returns names, rewards and the last info."""
    names: list[str] = []
    rewards: list[float] = []
    info: dict[str, Any] = {}
    over = False
    for choice in choices:
        allowed = np.flatnonzero(env.action_masks())
        action = allowed[choice % len(allowed)]
        names.append(PRECISIONS[action])
        observation, reward, over, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert not truncated
        rewards.append(reward)
    assert over
    return names, rewards, info


# What an environment has to be.


@pytest.mark.parametrize("missing", [{}, MISSING])
def test_gymnasium_finds_nothing_to_complain_about(missing: dict[int, tuple[str, ...]]) -> None:
    evaluator = FormulaEvaluator(make_profile(4, missing=missing))
    if not missing:  # the checker draws any action, masked or not
        check_env(gymnasium.make("wattbit/LayerPrecision-v0", evaluator=evaluator).unwrapped)
    env = gymnasium.make("wattbit/LayerPrecision-v0", evaluator=evaluator)
    observation, info = env.reset(seed=3, options={"tolerance_pp": 1.0})
    assert env.observation_space.contains(observation)
    assert info == {"tolerance_pp": 1.0, "energy_price": 1.0}


def test_stable_baselines_finds_nothing_to_complain_about() -> None:
    sb3_checker.check_env(LayerPrecisionEnv(FormulaEvaluator(make_profile(4))))


def test_an_environment_with_a_model_in_it_passes_the_checks_too() -> None:
    """Gymnasium copies an environment's arguments; a model's locks cannot be copied."""
    profile, split = make_profile(3), make_split(8)
    model = StubModel(profile, lambda plan: 0)
    evaluator = PlanEvaluator(model.as_model(), profile, split.inputs, split.labels)
    assert copy.deepcopy(evaluator) is evaluator
    check_env(gymnasium.make("wattbit/LayerPrecision-v0", evaluator=evaluator).unwrapped)


def test_rendering_shows_the_plan_so_far() -> None:
    evaluator = FormulaEvaluator(make_profile(3))
    env = gymnasium.make("wattbit/LayerPrecision-v0", evaluator=evaluator, render_mode="ansi")
    env.reset(seed=0)
    env.step(2)
    assert cast(str, env.render()) == "block.0: int8\nblock.1: fp32\nblock.2: fp32"


def test_equal_seeds_give_equal_episodes_and_others_do_not() -> None:
    def episode(seed: int) -> list[Any]:
        env = make_env(price_range=(0.5, 2.0))
        observation, info = env.reset(seed=seed)
        _, rewards, last = play(env, [3, 1, 2, 0])
        again, _ = env.reset()
        return [*observation, *info.values(), *rewards, last["plan"], *again]

    assert episode(5) == episode(5)
    assert episode(5) != episode(6)


def test_tolerances_and_prices_are_drawn_within_their_ranges() -> None:
    env = make_env(tolerance_range_pp=[0.2, 3.0], price_range=[0.5, 2.0])
    drawn = [env.reset(seed=seed)[1] for seed in range(200)]
    tolerances = np.array([info["tolerance_pp"] for info in drawn])
    prices = np.array([info["energy_price"] for info in drawn])
    assert 0.2 <= tolerances.min() < 0.3
    assert 2.0 < tolerances.max() <= 3.0
    assert 0.5 <= prices.min() < 0.7 < 1.5 < prices.max() <= 2.0
    assert make_env(tolerance_range_pp=(1.0, 1.0)).reset(seed=1)[1]["tolerance_pp"] == 1.0
    assert env.tolerance_range_pp == (0.2, 3.0)


# What an observation says.


def test_an_observation_says_what_its_names_promise() -> None:
    env = make_env(pp_per_nat=20.0)
    profile, names = env.encoder.profile, env.encoder.names
    assert len(set(names)) == len(names) == env.encoder.size
    observation, _ = env.reset(options={"tolerance_pp": 0.5, "energy_price": 2.0})
    plan: list[str] = []
    for layer, action in zip(profile.layers, [3, 1, 2, 0], strict=True):
        seen = dict(zip(names, map(float, observation), strict=True))
        committed_j = sum(profile.step_energy_j(i, p, plan[i - 1] if i else None) for i, p in enumerate(plan))
        used_nats = sum(profile.layers[i].costs[p].sensitivity for i, p in enumerate(plan))
        open_j = sum(later.costs["fp32"].energy_j for later in profile.layers[len(plan) :])
        previous = plan[-1] if plan else "none"
        expected = {
            "tolerance_log10_pp": math.log10(0.5),
            "energy_price_log10": math.log10(2.0),
            "energy_committed": committed_j / profile.reference_energy_j,
            "energy_open": open_j / profile.reference_energy_j,
            "predicted_drop_used": 2.0 * math.tanh(20.0 * used_nats / 0.5 / 2.0),
            "depth": layer.shape.depth,
            **{f"previous_{name}": float(name == previous) for name in ("none", *PRECISIONS)},
        }
        for name in PRECISIONS:
            cost = layer.costs.get(name)
            drop_pp = cost.sensitivity * 20.0 if cost else 0.0
            expected[f"supported_{name}"] = float(cost is not None)
            expected[f"energy_ratio_{name}"] = cost.energy_j / layer.costs["fp32"].energy_j if cost else 1.0
            expected[f"predicted_drop_log10_{name}"] = math.log10(max(drop_pp / 0.5, 1e-5)) if cost else 0.0
        assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        observation, *_ = env.step(action)
        plan.append(PRECISIONS[action])
    assert not observation.any()


@settings(deadline=None, max_examples=40)
@given(
    tolerance=st.floats(1e-6, 1e6),
    price=st.floats(1e-6, 1e6),
    pp_per_nat=st.floats(1e-9, 1e12),
    seed=st.integers(0, 99),
)
def test_observations_stay_bounded_whatever_is_asked(
    tolerance: float, price: float, pp_per_nat: float, seed: int
) -> None:
    env = LayerPrecisionEnv(FormulaEvaluator(make_profile(3, seed=seed)), pp_per_nat=pp_per_nat)
    observation, _ = env.reset(options={"tolerance_pp": tolerance, "energy_price": price})
    assert env.observation_space.contains(observation)
    play(env, [4, 1, 2])


# What an episode pays.


@settings(deadline=None, max_examples=60)
@given(
    choices=st.lists(st.integers(0, 10), min_size=4, max_size=4),
    tolerance=st.floats(0.05, 20.0),
    price=st.floats(0.1, 10.0),
    seed=st.integers(0, 5),
    other_j=st.sampled_from([None, 1e-6]),
    alpha=st.sampled_from([0.2, 0.5]),
)
def test_rewards_add_up_to_energy_saved_less_the_penalty(
    choices: list[int], tolerance: float, price: float, seed: int, other_j: float | None, alpha: float
) -> None:
    profile = make_profile(4, seed=seed, missing=MISSING, other_energy_j=other_j)
    evaluator, gate = FormulaEvaluator(profile), SearchGate(alpha)
    env = LayerPrecisionEnv(evaluator, gate=gate, penalty=3.0, divergence_weight=0.1)
    env.reset(options={"tolerance_pp": tolerance, "energy_price": price})
    names, rewards, info = play(env, choices)
    plan = PrecisionPlan(dict(zip(profile.layer_names, names, strict=True)))
    outcome = evaluator.evaluate(plan)
    judged_pp = 0.0 if plan == profile.reference_plan else gate.bound_pp(outcome.counts)
    excess = min(10.0, max(0.0, judged_pp - tolerance) / tolerance)
    saved = profile.saving(profile.plan_energy_j(plan))
    expected = price * saved - 3.0 * excess - 0.1 * math.tanh(outcome.divergence)
    assert sum(rewards) == pytest.approx(expected, abs=1e-9)
    assert info["plan"] == plan
    assert info["energy_j"] == outcome.energy_j
    assert info["drop_pp"] == outcome.drop_pp
    assert info["feasible"] == (judged_pp <= tolerance)
    assert info["provenance"] == "modelled"
    assert info["tolerance_pp"] == tolerance
    assert info["evaluations"] == 1


def test_the_plan_that_is_run_is_the_plan_that_was_chosen() -> None:
    env = make_env()
    evaluator = cast(FormulaEvaluator, env.evaluator)
    env.reset(seed=0)
    names, _, info = play(env, [2, 3, 1, 0])
    assert [list(plan.values()) for plan in evaluator.ran] == [names]
    assert list(info["plan"].values()) == names


def test_the_reference_breaks_no_tolerance_however_small_the_split() -> None:
    env = LayerPrecisionEnv(FormulaEvaluator(make_profile(3), samples=5))
    env.reset(options={"tolerance_pp": 0.01})
    _, rewards, info = play(env, [0, 0, 0])
    assert sum(rewards) == 0.0
    assert info["feasible"]


def test_a_saving_never_pays_for_a_broken_tolerance_many_times_over() -> None:
    env = LayerPrecisionEnv(FormulaEvaluator(make_profile(3), pp_per_nat=1e5))
    env.reset(options={"tolerance_pp": 0.01})
    _, rewards, info = play(env, [4, 4, 4])
    assert not info["feasible"]
    assert -20.1 < sum(rewards) < -18.0


# What is refused.


def test_a_masked_action_is_refused_and_changes_nothing() -> None:
    env, other = make_env(), make_env()
    env.reset(seed=0)
    other.reset(seed=0)
    forbidden = PRECISIONS.index("int2")
    assert not env.action_masks()[forbidden]
    with pytest.raises(ValueError, match=r"does not support 'int2': choose among fp32, bf16, int8, int4"):
        env.step(forbidden)
    assert np.array_equal(env.action_masks(), other.action_masks())
    while True:
        (observation, *outcome), (expected, *expected_outcome) = env.step(0), other.step(0)
        assert np.array_equal(observation, expected)
        assert outcome == expected_outcome
        if outcome[1]:
            break


@pytest.mark.parametrize("action", [-1, 5, np.int64(-5)])
def test_an_action_that_does_not_exist_is_refused(action: int) -> None:
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action is {int(action)}, must be from 0 to 4"):
        env.step(action)


def test_an_action_that_is_no_whole_number_is_not_rounded() -> None:
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(TypeError):
        env.step(cast(int, 1.7))


def test_a_step_after_the_end_is_refused() -> None:
    env = make_env()
    env.reset(seed=0)
    play(env, [0, 0, 0, 0])
    assert env.action_masks().all()
    with pytest.raises(IndexError, match="start a new plan"):
        env.step(0)


@pytest.mark.parametrize("name", ["tolerance_range_pp", "price_range"])
@pytest.mark.parametrize(
    "limits", [(0.0, 1.0), (2.0, 1.0), (1.0,), (1.0, math.inf), (math.nan, 1.0), (-1, 1)]
)
def test_a_range_that_makes_no_sense_is_refused(name: str, limits: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*, must be two positive numbers, the smaller first"):
        make_env(**{name: limits})


@pytest.mark.parametrize(
    ("name", "value"),
    [("penalty", -1.0), ("divergence_weight", math.nan), ("pp_per_nat", 0.0), ("pp_per_nat", math.inf)],
)
def test_a_weight_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is"):
        make_env(**{name: value})


@pytest.mark.parametrize("name", ["tolerance_pp", "energy_price"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_context_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(GuardrailError, match=f"{name} is"):
        make_env().reset(options={name: value})


def test_a_mistyped_option_is_refused_and_the_right_ones_named() -> None:
    with pytest.raises(ConfigError, match=r"no option 'tolerance'; choose from tolerance_pp, energy_price"):
        make_env().reset(options={"tolerance": 1.0})


# In a vectorised environment.


def test_after_an_episode_the_mask_is_that_of_the_first_layer_again() -> None:
    venv = DummyVecEnv([partial(make_env)] * 3)
    venv.seed(0)
    venv.reset()
    first = venv.env_method("action_masks")
    assert not first[0][PRECISIONS.index("int2")]
    for _ in range(4):
        _, _, dones, infos = venv.step(np.zeros(3, int))
    assert dones.all()
    assert all(info["plan"] for info in infos)
    assert np.array_equal(venv.env_method("action_masks"), first)


def test_environments_side_by_side_draw_tolerances_of_their_own() -> None:
    venv = DummyVecEnv([partial(make_env)] * 3)
    venv.seed(0)
    venv.reset()
    assert len({info["tolerance_pp"] for info in venv.reset_infos}) == 3


def test_masks_and_observations_kept_from_a_step_do_not_change_later() -> None:
    env = make_env()
    observation, _ = env.reset(seed=0)
    mask = env.action_masks()
    kept = observation.copy(), mask.copy()
    play(env, [1, 1, 1, 1])
    env.reset(seed=1)
    assert np.array_equal(observation, kept[0])
    assert np.array_equal(mask, kept[1])
