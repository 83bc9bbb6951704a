"""Warm start: imitate the best plans known so far, at many tolerances, before PPO improves on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO

from agents.archive import Archive
from envs.layer_precision import LayerPrecisionEnv

_LOOK_EVERY = 25
"""Updates between two looks at whether everything is imitated."""


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Steps of episodes that build known plans.

    Attributes:
        observations: (steps, features) float32.
        masks: (steps, precisions) bool.
        actions: (steps,) int64.
        returns: (steps,) float32: sum of the rewards from this step to the end of its episode.
    """

    observations: NDArray[np.float32]
    masks: NDArray[np.bool_]
    actions: NDArray[np.int64]
    returns: NDArray[np.float32]


def demonstrate(
    env: LayerPrecisionEnv, archive: Archive, tolerances_pp: NDArray[np.float64]
) -> Demonstrations:
    """Build the archive's best plan for each of ``tolerances_pp``; their outcomes are known already."""
    observations, masks, actions, returns = [], [], [], []
    names = env.encoder.profile.precisions
    for tolerance_pp in tolerances_pp:
        plan = archive.best(float(tolerance_pp)).plan
        observation, _ = env.reset(options={"tolerance_pp": float(tolerance_pp), "energy_price": 1.0})
        rewards = []
        for layer in env.encoder.profile.layer_names:
            action = names.index(plan[layer])
            observations.append(observation)
            masks.append(env.action_masks())
            actions.append(action)
            observation, reward, *_ = env.step(action)
            rewards.append(reward)
        returns.append(np.cumsum(rewards[::-1])[::-1])
    return Demonstrations(
        np.array(observations), np.array(masks), np.array(actions), np.concatenate(returns).astype(np.float32)
    )


def imitate(
    model: MaskablePPO,
    demonstrations: Demonstrations,
    *,
    updates: int,
    learning_rate: float,
    smoothing: float,
) -> float:
    """Fit the policy to the actions and the value function to the returns.

    Args:
        model: The agent; changed in place.
        demonstrations: What to imitate.
        updates: Full-batch Adam steps, at most: without smoothing it is done when every action is imitated.
        learning_rate: Adam's.
        smoothing: Share of the target probability spread over all allowed actions, so that the policy stays
            uncertain enough to explore.

    Returns:
        The share of steps at which the most probable action is the demonstrated one.
    """
    policy = model.policy
    observations = torch.as_tensor(demonstrations.observations)
    masks = torch.as_tensor(demonstrations.masks)
    actions = torch.as_tensor(demonstrations.actions)
    returns = torch.as_tensor(demonstrations.returns)
    targets = F.one_hot(actions, masks.shape[1]).float() * (1 - smoothing)
    targets = targets + smoothing * masks / masks.sum(1, keepdim=True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    policy.set_training_mode(True)
    logits = torch.zeros(0)
    for update in range(updates):
        latent_policy, latent_value = policy.mlp_extractor(policy.extract_features(observations))
        logits = policy.action_net(latent_policy).masked_fill(~masks, -1e8)
        if smoothing == 0.0 and update % _LOOK_EVERY == 0 and bool((logits.argmax(1) == actions).all()):
            break
        loss = -(targets * F.log_softmax(logits, 1)).sum(1).mean()
        loss = loss + F.mse_loss(policy.value_net(latent_value).squeeze(1), returns)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    policy.set_training_mode(False)
    return float((logits.argmax(1) == actions).double().mean()) if updates else 0.0
