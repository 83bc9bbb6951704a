"""DDPG over continuous actions, the formulation of HAQ, within a budget of evaluated plans.

Wang et al. (2019), "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", CVPR: one continuous
action a layer, the reward at the end of the episode, exploration noise that decays after a random warm-up.
HAQ trains one agent for one constraint and lowers actions that break it after acting; here the tolerance is
drawn for each episode and observed, and what was acted is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DDPG as Agent  # noqa: N811 (ours has its name)
from stable_baselines3.common.noise import ActionNoise

from agents.search_method import SearchTask
from agents.stopping import BudgetSpent
from agents.training_callbacks import StopAtBudget
from envs.continuous_action import ContinuousActionEnv
from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError


class DDPG:
    """SB3's DDPG on `ContinuousActionEnv`.

    Args:
        make_env: Builds a `LayerPrecisionEnv` around an evaluator.
        warm_up_share: Share of the budget spent on random episodes.
        episodes_per_evaluation: Episodes per evaluation of the budget, after which the search ends even if
            most of them built plans that were known.
        updates_per_episode: Gradient steps after each episode, at most as many as the episode had steps.
        noise: Standard deviation of the exploration noise to begin with; actions reach from -1 to 1.
        noise_left: Share of it that is left when as many episodes are over as the budget has evaluations.
        learning_rate: Adam's, of actor and critic.
        batch_size: Steps in a minibatch.

    Attributes:
        model: The agent; None before `search`.

    Raises:
        ConfigError: If a share is not between 0 and 1.
    """

    name = "ddpg"

    def __init__(
        self,
        *,
        make_env: Callable[..., LayerPrecisionEnv],
        warm_up_share: float = 0.2,
        episodes_per_evaluation: int = 3,
        updates_per_episode: int = 16,
        noise: float = 1.0,
        noise_left: float = 0.2,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        for label, share in (("warm_up_share", warm_up_share), ("noise_left", noise_left)):
            if not 0.0 < share <= 1.0:
                raise ConfigError(f"{label} is {share}, must be above 0 and at most 1")
        self._make_env = make_env
        self._warm_up_share = warm_up_share
        self._episodes_per_evaluation = episodes_per_evaluation
        self._updates_per_episode = updates_per_episode
        self._noise = noise
        self._noise_left = noise_left
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self.model: Agent | None = None

    def search(self, task: SearchTask) -> None:
        """Train until the budget is spent, or the episodes are."""
        layers = len(task.evaluator.profile.layers)
        env = ContinuousActionEnv(self._make_env(task.evaluator))
        warm_up = max(1, round(self._warm_up_share * task.budget))
        decay = self._noise_left ** (1.0 / max(1, task.budget - warm_up))
        model = self.model = Agent(
            "MlpPolicy",
            env,
            learning_rate=self._learning_rate,
            buffer_size=self._episodes_per_evaluation * task.budget * layers,
            learning_starts=warm_up * layers,
            batch_size=self._batch_size,
            gamma=1.0,  # the reward of the whole plan, however many layers it has
            train_freq=(1, "episode"),
            gradient_steps=min(self._updates_per_episode, layers),
            action_noise=DecayingNoise(self._noise, decay, warm_up, task.seed),
            policy_kwargs={"net_arch": [64, 64]},
            seed=task.seed,
            device="cpu",
        )
        with suppress(BudgetSpent):
            model.learn(self._episodes_per_evaluation * task.budget * layers, callback=_StopAndReport(task))


class DecayingNoise(ActionNoise):
    """Gaussian noise whose deviation shrinks by a factor after each episode but the first ones.

    Args:
        deviation: Standard deviation to begin with.
        decay: The factor.
        constant: Episodes at the beginning during which it does not shrink.
        seed: Seeds the noise.
    """

    def __init__(self, deviation: float, decay: float, constant: int, seed: int) -> None:
        super().__init__()
        self.deviation = deviation
        self._decay = decay
        self._constant = constant
        self._rng = np.random.default_rng(seed)

    def __call__(self) -> NDArray[np.float32]:
        """The noise of one action, (1,)."""
        return self._rng.normal(0.0, self.deviation, 1).astype(np.float32)

    def reset(self) -> None:
        """An episode is over."""
        if self._constant > 0:
            self._constant -= 1
        else:
            self.deviation *= self._decay


class _StopAndReport(StopAtBudget):
    """Ends the training at the budget, and reports after each episode."""

    def _on_rollout_end(self) -> None:
        self._task.report(self._task.evaluator.evaluations, self._task.budget, "")
