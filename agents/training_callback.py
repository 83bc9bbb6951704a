"""The learning curve, and what watches over the learning: the budget, the entropy, the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.search_method import SearchTask

# The entropy bonus grows faster than it shrinks, within limits between which PPO still learns from rewards.
_GROW, _SHRINK = 1.3, 0.9
_LEAST, _MOST = 0.002, 0.2


@dataclass(frozen=True, slots=True)
class LearningPoint:
    """One point of the learning curve, taken after each rollout and at the end.

    Attributes:
        timesteps: Environment steps so far.
        mean_reward: Mean reward of an episode, over the last hundred.
        entropy: Mean entropy of the policy in the last update, nats; None before the first.
        evaluations: Distinct plans asked for so far.
        best_saving: Share of the reference energy that the best plan known saves, by tolerance (pp).
    """

    timesteps: int
    mean_reward: float
    entropy: float | None
    evaluations: int
    best_saving: Mapping[float, float]


class LearningWatch(BaseCallback):
    """Stops at the budget, keeps the entropy above its floor, draws the learning curve, and saves.

    Args:
        agent: The agent that learns.
        task: What it is to do.
        entropy_floor: Smallest mean entropy, nats.
        curve: The learning curve; points are added to it.
        save: Called after each rollout and by `finish`.
    """

    def __init__(
        self,
        agent: MaskablePPO,
        task: SearchTask,
        entropy_floor: float,
        curve: list[LearningPoint],
        save: Callable[[], None],
    ) -> None:
        super().__init__()
        self._agent = agent
        self._task = task
        self._floor = entropy_floor
        self._curve = curve
        self._save = save

    def finish(self) -> None:
        """Record and save where the learning ended, be it in the middle of a rollout."""
        if not self._curve or self._curve[-1].timesteps < self._agent.num_timesteps:
            self._add_point()
        self._save()

    def _on_step(self) -> bool:
        return self._task.evaluator.evaluations < self._task.budget

    def _on_rollout_end(self) -> None:
        entropy = self._last_entropy()
        if entropy is not None:
            factor = _GROW if entropy < self._floor else _SHRINK
            self._agent.ent_coef = float(np.clip(self._agent.ent_coef * factor, _LEAST, _MOST))
        point = self._add_point()
        if point is not None:
            self.logger.record("search/evaluations", point.evaluations)
            for tolerance, value in point.best_saving.items():
                self.logger.record(f"search/saving_at_{tolerance:g}pp", value)
            self._task.report(point.evaluations, self._task.budget, f"reward {point.mean_reward:.3f}")
        self._save()

    def _add_point(self) -> LearningPoint | None:
        """Add a point to the curve; None, and no point, before an episode has ended."""
        rewards = [episode["r"] for episode in self._agent.ep_info_buffer or ()]
        if not rewards:
            return None
        archive = self._task.archive
        saving = {
            tolerance: 1.0 - archive.best(tolerance).energy_j / archive.reference.energy_j
            for tolerance in self._task.tolerances_pp
        }
        point = LearningPoint(
            timesteps=self._agent.num_timesteps,
            mean_reward=float(np.mean(rewards)),
            entropy=self._last_entropy(),
            evaluations=self._task.evaluator.evaluations,
            best_saving=saving,
        )
        self._curve.append(point)
        return point

    def _last_entropy(self) -> float | None:
        # What the update before this rollout logged; it is there until the logger writes it out.
        loss = self.logger.name_to_value.get("train/entropy_loss")
        return None if loss is None else -float(loss)
