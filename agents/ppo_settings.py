"""The settings of a PPO agent, by what they govern; named as stable-baselines3 names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattbit.errors import require_at_least


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What is collected between two updates.

    Attributes:
        n_envs: Environments stepped side by side.
        episodes: Episodes in a rollout, rounded up to a multiple of ``n_envs``.

    Raises:
        ConfigError: If a number is below 1.
    """

    n_envs: int = 8
    episodes: int = 64

    def __post_init__(self) -> None:
        require_at_least(1, n_envs=self.n_envs, episodes=self.episodes)


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How network and optimiser learn from a rollout.

    Attributes:
        learning_rate: Adam's.
        batch_size: Minibatch size; the divisor of a rollout's steps that comes nearest is used.
        n_epochs: Passes over a rollout.
        gae_lambda: Generalised advantage estimation; 1 is Monte Carlo.
        clip_range: PPO's clip.
        target_kl: An update stops early beyond this divergence from the old policy.
        ent_coef: Entropy bonus to begin with.
        entropy_floor: Smallest mean entropy (nats); below it the entropy bonus grows, above it shrinks again.
        net_arch: Widths of the hidden layers of policy and value network.
    """

    learning_rate: float = 3e-4
    batch_size: int = 128
    n_epochs: int = 6
    gae_lambda: float = 0.98
    clip_range: float = 0.2
    target_kl: float = 0.05
    ent_coef: float = 0.01
    entropy_floor: float = 0.3
    net_arch: Sequence[int] = (64, 64)


@dataclass(frozen=True, slots=True)
class ImitationSettings:
    """The warm start (`agents.imitation`).

    Attributes:
        updates: Gradient steps; 0 starts cold.
        tolerances: Number of tolerances demonstrated.
        smoothing: Share of the target probability spread over all allowed actions.
    """

    updates: int = 300
    tolerances: int = 24
    smoothing: float = 0.2
