"""Environments in lockstep behave like environments one after another, and run their plans together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from synthetic import FormulaEvaluator, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.stopping import BudgetSpent
from envs.evaluators.evaluator import Outcome
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.plan_vec_env import PlanVecEnv
from wattbit.errors import ConfigError, GuardrailError
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(4, missing={0: ("int2",), 2: ("bf16", "int4")})


class Counting(FormulaEvaluator):
    """Remembers how many plans were asked for at a time."""

    def __init__(self) -> None:
        super().__init__(PROFILE)
        self.asked: list[int] = []

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        self.asked.append(len(plans))
        return super().evaluate_all(plans)


def make(kind: Callable[[Any], VecEnv], envs: int = 3, **arguments: Any) -> VecEnv:
    evaluator = Counting()
    return kind([partial(LayerPrecisionEnv, evaluator, **arguments) for _ in range(envs)])


def episode_infos(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the one figure that says in which order plans were run."""
    return [{key: value for key, value in info.items() if key != "evaluations"} for info in infos]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), envs=st.integers(1, 5), choices=st.integers(0, 10**6))
def test_in_lockstep_everything_is_as_one_after_another(seed: int, envs: int, choices: int) -> None:
    lockstep, dummy = make(PlanVecEnv, envs), make(DummyVecEnv, envs)
    for venv in (lockstep, dummy):
        venv.seed(seed)
        venv.set_options([{"tolerance_pp": 0.5}, *[{} for _ in range(envs - 1)]])
    assert_same(lockstep.reset(), dummy.reset())
    assert_same(lockstep.reset_infos, dummy.reset_infos)
    rng = np.random.default_rng(choices)
    for _ in range(3 * len(PROFILE.layers)):
        masks = [np.array(venv.env_method("action_masks")) for venv in (lockstep, dummy)]
        assert_same(*masks)
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks[0]])
        *stepped, infos = lockstep.step(actions)
        *expected, expected_infos = dummy.step(actions)
        assert_same(stepped, expected)
        assert_same(episode_infos(infos), episode_infos(expected_infos))
        assert_same(lockstep.reset_infos, dummy.reset_infos)


def test_the_plans_of_all_episodes_are_run_together_once_they_are_complete() -> None:
    venv = make(PlanVecEnv, 5)
    evaluator = venv.get_attr("evaluator")[0]
    venv.reset()
    for step in range(2 * len(PROFILE.layers)):
        _, _, dones, infos = venv.step(np.zeros(5, np.int64))
        assert dones.tolist() == [step % 4 == 3] * 5
        assert ["plan" in info for info in infos] == dones.tolist()
    assert evaluator.asked == [5, 5]
    assert evaluator.evaluations == 1


def test_an_agent_learns_the_same_in_lockstep() -> None:
    agents = []
    for kind in (PlanVecEnv, DummyVecEnv):
        venv = VecMonitor(make(kind, 4))
        agent = MaskablePPO("MlpPolicy", venv, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
        agents.append(agent.learn(64))
    weights = [agent.policy.state_dict() for agent in agents]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_a_budget_that_ends_within_a_step_ends_it_with_what_still_fits() -> None:
    inner = Counting()
    reference = inner.evaluate(PROFILE.reference_plan)
    archive = Archive(reference, SearchGate())
    evaluator = ArchivingEvaluator(inner, "ppo", (archive,), budget=2)
    venv = PlanVecEnv([partial(LayerPrecisionEnv, evaluator) for _ in range(4)])
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros(4, np.int64))
    with pytest.raises(BudgetSpent):
        venv.step(np.array([0, 1, 2, 3]))
    assert len(archive) == 2


def test_attributes_and_methods_reach_the_environments_asked_for() -> None:
    venv = make(PlanVecEnv, 3, penalty=3.0)
    assert venv.num_envs == 3
    assert [round(e.pp_per_nat) for e in venv.get_attr("encoder", [0, 2])] == [10, 10]
    venv.set_attr("gate", SearchGate(0.4), 1)
    assert [gate.alpha for gate in venv.get_attr("gate")] == [0.2, 0.4, 0.2]
    assert venv.env_is_wrapped(Monitor, 0) == [False]
    assert venv.has_attr("evaluator")
    venv.reset()
    assert venv.env_method("render", indices=[2]) == ["\n".join(f"{n}: fp32" for n in PROFILE.layer_names)]
    venv.close()


def test_environments_that_cannot_go_in_lockstep_are_refused() -> None:
    env = LayerPrecisionEnv(Counting())
    with pytest.raises(ConfigError, match="2 makers made too few environments"):
        PlanVecEnv([lambda: env, lambda: env])
    with pytest.raises(ConfigError, match="0 makers made too few"):
        PlanVecEnv([])
    with pytest.raises(ConfigError, match="different evaluators"):
        PlanVecEnv([lambda: LayerPrecisionEnv(Counting()), lambda: LayerPrecisionEnv(Counting())])
    venv = make(PlanVecEnv, 1)
    venv.set_options({"tolerance_pp": -1.0})
    with pytest.raises(GuardrailError, match="tolerance_pp is -1"):
        venv.reset()
    with pytest.raises(ValueError, match="does not support"):
        make(PlanVecEnv, 1).step(np.array([4]))
