"""The exported policy does what the trained one does."""

from typing import Any

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from synthetic import ALL, FormulaEvaluator, make_profile
from torch import nn

from agents.export import export_policy
from envs.layer_precision import LayerPrecisionEnv
from wattbit.features import Context, FeatureEncoder
from wattbit.policy import MLPPolicy

PROFILE = make_profile(4, ALL)


def train(net_arch: list[int], activation: type[nn.Module] = nn.Tanh) -> MaskablePPO:
    """An agent, trained for a moment so that no weight is as it was made."""
    agent = MaskablePPO(
        "MlpPolicy",
        LayerPrecisionEnv(FormulaEvaluator(PROFILE)),
        policy_kwargs={"net_arch": net_arch, "activation_fn": activation},
        learning_rate=1e-2,
        n_steps=64,
        batch_size=32,
        seed=0,
        device="cpu",
    )
    return agent.learn(128)


@pytest.mark.parametrize("net_arch", [[64, 64], [32], []])
def test_the_exported_policy_chooses_as_the_agent_does_on_ten_thousand_observations(
    net_arch: list[int],
) -> None:
    agent = train(net_arch)
    policy = export_policy(agent, PROFILE.precisions, 25.0)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-5.0, 5.0, (10_000, policy.observation_size)).astype(np.float32)
    masks = rng.random((10_000, len(PROFILE.precisions))) < 0.5
    masks[np.arange(10_000), rng.integers(0, len(PROFILE.precisions), 10_000)] = True
    expected, _ = agent.predict(observations, action_masks=masks, deterministic=True)
    chosen = [policy.act(observation, mask) for observation, mask in zip(observations, masks, strict=True)]
    assert np.array_equal(chosen, expected)
    assert masks[np.arange(10_000), chosen].all()


def test_the_exported_policy_proposes_the_plan_that_the_agent_walks_to() -> None:
    agent = train([64, 64])
    policy = export_policy(agent, PROFILE.precisions, 10.0)
    for tolerance in (0.2, 1.0, 4.0):
        env = LayerPrecisionEnv(FormulaEvaluator(PROFILE))
        observation, _ = env.reset(options={"tolerance_pp": tolerance})
        over = False
        info: dict[str, Any] = {}
        while not over:
            action, _ = agent.predict(observation, action_masks=env.action_masks(), deterministic=True)
            observation, _, over, _, info = env.step(int(action))
        assert policy.propose(FeatureEncoder(PROFILE, 10.0), Context(tolerance)) == info["plan"]


def test_a_policy_survives_its_file() -> None:
    policy = export_policy(train([16]), PROFILE.precisions, 25.0)
    again = MLPPolicy.from_bytes(policy.to_bytes())
    assert again.pp_per_nat == 25.0
    assert again.precisions == PROFILE.precisions
    for mine, theirs in zip(policy.weights, again.weights, strict=True):
        assert np.array_equal(mine, theirs)


def test_an_export_is_a_copy_that_further_training_leaves_alone() -> None:
    agent = train([16])
    policy = export_policy(agent, PROFILE.precisions, 25.0)
    before = [weight.copy() for weight in policy.weights]
    agent.learn(64)
    assert all(np.array_equal(a, b) for a, b in zip(before, policy.weights, strict=True))


def test_other_activations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"this one has ReLU in place of Tanh; train with the default"):
        export_policy(train([16], nn.ReLU), PROFILE.precisions, 25.0)


def test_hidden_layers_without_an_activation_are_refused() -> None:
    agent = train([16])
    agent.policy.mlp_extractor.policy_net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="this one has Linear in place of Tanh"):
        export_policy(agent, PROFILE.precisions, 25.0)
