"""PPO agents that train in a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.ppo import PPOAgent
from agents.ppo_settings import ImitationSettings, RolloutSettings, UpdateSettings
from envs.layer_precision import LayerPrecisionEnv


def quick_agent(
    make_env: Callable[..., LayerPrecisionEnv],
    *,
    n_envs: int = 4,
    episodes: int = 16,
    n_epochs: int = 2,
    net_arch: Sequence[int] = (16,),
    imitation_updates: int = 20,
    tensorboard_log: Path | None = None,
    checkpoint: Path | None = None,
    **update: Any,
) -> PPOAgent:
    """An agent whose rollouts, network and warm start are small.

    Args:
        make_env: See `PPOAgent`.
        n_envs: See `RolloutSettings`.
        episodes: See `RolloutSettings`.
        n_epochs: See `UpdateSettings`.
        net_arch: See `UpdateSettings`.
        imitation_updates: See `ImitationSettings`.
        tensorboard_log: See `PPOAgent`.
        checkpoint: See `PPOAgent`.
        update: Further fields of `UpdateSettings`.
    """
    return PPOAgent(
        make_env,
        RolloutSettings(n_envs, episodes),
        UpdateSettings(n_epochs=n_epochs, net_arch=net_arch, **update),
        ImitationSettings(imitation_updates, tolerances=6),
        tensorboard_log,
        checkpoint,
    )
