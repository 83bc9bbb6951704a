"""The warm start: the agent learns to do what the best plans known do."""

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from synthetic import FormulaEvaluator, all_plans, make_profile

from agents.archive import Archive
from agents.imitation import Demonstrations, demonstrate, imitate
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv

TOLERANCES = np.geomspace(0.1, 4.0, 6)


@pytest.fixture
def env() -> LayerPrecisionEnv:
    return LayerPrecisionEnv(FormulaEvaluator(make_profile(3, missing={0: ("int2",)})))


@pytest.fixture
def archive(env: LayerPrecisionEnv) -> Archive:
    reference = env.evaluator.evaluate(env.encoder.profile.reference_plan)
    made = Archive(reference, SearchGate())
    for plan in all_plans(env.encoder.profile):
        made.add(env.evaluator.evaluate(plan), "all")
    return made


@pytest.fixture
def agent(env: LayerPrecisionEnv) -> MaskablePPO:
    return MaskablePPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=8, device="cpu")


def test_what_is_shown_is_the_best_plan_for_each_tolerance(env: LayerPrecisionEnv, archive: Archive) -> None:
    shown = demonstrate(env, archive, TOLERANCES)
    names = env.encoder.profile.precisions
    assert shown.observations.shape == (18, env.encoder.size)
    assert shown.masks.shape == (18, len(names))
    assert shown.masks[np.arange(18), shown.actions].all()
    for index, tolerance in enumerate(TOLERANCES):
        steps = slice(3 * index, 3 * index + 3)
        assert [names[a] for a in shown.actions[steps]] == list(archive.best(float(tolerance)).plan.values())
        assert np.allclose(shown.observations[steps, 0], np.log10(tolerance), atol=1e-6)


def test_returns_are_what_the_rest_of_the_episode_pays(env: LayerPrecisionEnv, archive: Archive) -> None:
    shown = demonstrate(env, archive, np.array([2.0]))
    best = archive.best(2.0)
    env.reset(options={"tolerance_pp": 2.0, "energy_price": 1.0})
    rewards = [env.step(action)[1] for action in shown.actions]
    assert shown.returns == pytest.approx([sum(rewards[i:]) for i in range(3)], abs=1e-6)
    assert shown.returns[0] == pytest.approx(
        env.encoder.profile.saving(best.energy_j) - 0.05 * np.tanh(best.divergence), abs=1e-6
    )


def test_the_agent_learns_what_it_is_shown(
    env: LayerPrecisionEnv, archive: Archive, agent: MaskablePPO
) -> None:
    shown = demonstrate(env, archive, TOLERANCES)
    before = accuracy(agent, shown)
    assert imitate(agent, shown, updates=200, learning_rate=1e-2, smoothing=0.1) >= max(0.95, before)
    assert accuracy(agent, shown) >= 0.95
    with torch.no_grad():
        values = agent.policy.predict_values(torch.as_tensor(shown.observations)).squeeze(1).numpy()
    assert np.abs(values - shown.returns).mean() < 0.1


def accuracy(agent: MaskablePPO, shown: Demonstrations) -> float:
    actions, _ = agent.predict(shown.observations, action_masks=shown.masks, deterministic=True)
    return float((actions == shown.actions).mean())


def test_smoothing_leaves_something_to_explore(
    env: LayerPrecisionEnv, archive: Archive, agent: MaskablePPO
) -> None:
    shown = demonstrate(env, archive, TOLERANCES)
    imitate(agent, shown, updates=300, learning_rate=1e-2, smoothing=0.3)
    actions = [torch.full((len(shown.masks),), action) for action in range(shown.masks.shape[1])]
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(shown.observations), shown.masks)
        probabilities = torch.stack([distribution.log_prob(a) for a in actions], 1).exp().numpy()
    allowed = shown.masks.sum(1)
    demonstrated = probabilities[np.arange(len(allowed)), shown.actions]
    assert np.abs(demonstrated - (0.7 + 0.3 / allowed)).mean() < 0.1
    assert probabilities[~shown.masks].max(initial=0.0) < 1e-6


def test_no_updates_change_nothing(env: LayerPrecisionEnv, archive: Archive, agent: MaskablePPO) -> None:
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    shown = demonstrate(env, archive, TOLERANCES)
    assert imitate(agent, shown, updates=0, learning_rate=1e-2, smoothing=0.1) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
