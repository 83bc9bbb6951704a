"""What happens while PPO learns, one job a callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

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


class StopAtBudget(BaseCallback):
    """Ends the training once the budget of ``task`` is spent."""

    def __init__(self, task: SearchTask) -> None:
        super().__init__()
        self._task = task

    def _on_step(self) -> bool:
        return self._task.evaluator.evaluations < self._task.budget


class EntropyFloor(BaseCallback):
    """Raises the entropy bonus of ``agent`` while the policy's entropy is below ``floor`` (nats)."""

    def __init__(self, agent: MaskablePPO, floor: float) -> None:
        super().__init__()
        self._agent = agent
        self._floor = floor

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        entropy = _last_entropy(self.logger)
        if entropy is not None:
            factor = _GROW if entropy < self._floor else _SHRINK
            self._agent.ent_coef = float(np.clip(self._agent.ent_coef * factor, _LEAST, _MOST))


class LearningCurve(BaseCallback):
    """Adds a point to ``points`` after each rollout, logs and reports it."""

    def __init__(self, agent: MaskablePPO, task: SearchTask, points: list[LearningPoint]) -> None:
        super().__init__()
        self._agent = agent
        self._task = task
        self._points = points

    def finish(self) -> None:
        """Add a point where the learning ended, even in the middle of a rollout."""
        if not self._points or self._points[-1].timesteps < self._agent.num_timesteps:
            self._add_point()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        point = self._add_point()
        if point is not None:
            self.logger.record("search/evaluations", point.evaluations)
            for tolerance, value in point.best_saving.items():
                self.logger.record(f"search/saving_at_{tolerance:g}pp", value)
            self._task.report(point.evaluations, self._task.budget, f"reward {point.mean_reward:.3f}")

    def _add_point(self) -> LearningPoint | None:
        """Add a point; None, and no point, before an episode has ended."""
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
            entropy=_last_entropy(self.logger),
            evaluations=self._task.evaluator.evaluations,
            best_saving=saving,
        )
        self._points.append(point)
        return point


class SaveEachRollout(BaseCallback):
    """Calls ``save`` after each rollout."""

    def __init__(self, save: Callable[[], None]) -> None:
        super().__init__()
        self._save = save

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._save()


def _last_entropy(logger: Logger) -> float | None:
    # What the update before this rollout logged; it is there until the logger writes it out.
    loss = logger.name_to_value.get("train/entropy_loss")
    return None if loss is None else -float(loss)
