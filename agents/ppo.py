"""PPO with action masks: one policy for every tolerance, warm-started by imitation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.archive import Archive
from agents.imitation import demonstrate, imitate
from agents.search_method import SearchTask
from envs.evaluator import Evaluator, Outcome
from envs.layer_precision import LayerPrecisionEnv
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class LearningPoint:
    """One point of the learning curve, taken after each rollout."""

    timesteps: int
    mean_reward: float
    entropy: float | None
    evaluations: int
    best_saving: Mapping[str, float]


class PPO:
    """MaskablePPO on `LayerPrecisionEnv`, within a budget of evaluated plans.

    Args:
        make_env: Builds a `LayerPrecisionEnv` around an evaluator.
        total_timesteps: Largest number of environment steps.
        n_envs: Environments stepped side by side.
        episodes_per_rollout: Episodes between two updates.
        learning_rate: Adam's.
        batch_size: Minibatch size.
        n_epochs: Passes over a rollout.
        gae_lambda: Generalised advantage estimation; 1 is Monte Carlo.
        clip_range: PPO's clip.
        target_kl: An update stops early beyond this divergence from the old policy.
        ent_coef: Entropy bonus to begin with.
        entropy_floor: Smallest mean entropy (nats); below it the entropy bonus grows, above it shrinks again.
        net_arch: Widths of the hidden layers of policy and value network.
        imitation_updates: Steps of the warm start; 0 starts cold.
        imitation_tolerances: Number of tolerances demonstrated.
        imitation_smoothing: See `agents.imitation.imitate`.
        tensorboard_log: Folder for TensorBoard, or None.
        checkpoint: File the agent is saved to after each rollout and resumed from if it exists, or None.
    """

    name = "ppo"

    def __init__(
        self,
        *,
        make_env: Callable[[Evaluator], LayerPrecisionEnv],
        total_timesteps: int = 20_000,
        n_envs: int = 8,
        episodes_per_rollout: int = 64,
        learning_rate: float = 3e-4,
        batch_size: int = 128,
        n_epochs: int = 6,
        gae_lambda: float = 0.98,
        clip_range: float = 0.2,
        target_kl: float = 0.05,
        ent_coef: float = 0.01,
        entropy_floor: float = 0.3,
        net_arch: Sequence[int] = (64, 64),
        imitation_updates: int = 300,
        imitation_tolerances: int = 24,
        imitation_smoothing: float = 0.2,
        tensorboard_log: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self._make_env = make_env
        self._total_timesteps = total_timesteps
        self._n_envs = n_envs
        self._episodes_per_rollout = episodes_per_rollout
        self._hyper = {
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "n_epochs": n_epochs,
            "gae_lambda": gae_lambda,
            "clip_range": clip_range,
            "target_kl": target_kl,
            "ent_coef": ent_coef,
        }
        self._entropy_floor = entropy_floor
        self._net_arch = list(net_arch)
        self._imitation_updates = imitation_updates
        self._imitation_tolerances = imitation_tolerances
        self._imitation_smoothing = imitation_smoothing
        self._tensorboard_log = tensorboard_log
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self.model: MaskablePPO | None = None
        self.learning_curve: list[LearningPoint] = []

    def search(self, task: SearchTask) -> None:
        """Warm-start from ``task.archive``, then train until the budget or the timesteps are spent."""
        layers = len(task.evaluator.profile.layers)
        venv = VecMonitor(DummyVecEnv([lambda: self._make_env(task.evaluator)] * self._n_envs))
        steps = max(1, -(-self._episodes_per_rollout * layers // self._n_envs))
        resumed = self._checkpoint is not None and self._checkpoint.exists()
        if resumed:
            self.model = MaskablePPO.load(self._checkpoint, env=venv, device="cpu")
        else:
            self.model = MaskablePPO(
                "MlpPolicy", venv, n_steps=steps, gamma=1.0, seed=task.seed, device="cpu",
                policy_kwargs={"net_arch": self._net_arch}, tensorboard_log=self._tensorboard_log,
                **self._hyper,
            )  # fmt: skip
            self._warm_start(task)
        watch = _Watch(task, self._entropy_floor, self._checkpoint, self.learning_curve)
        left = self._total_timesteps - self.model.num_timesteps
        if left > 0 and task.evaluator.evaluations < task.budget:
            self.model.learn(left, callback=watch, tb_log_name="ppo", reset_num_timesteps=not resumed)

    def _warm_start(self, task: SearchTask) -> None:
        if not self._imitation_updates or self.model is None:
            return
        env = self._make_env(_Recall(task.evaluator, task.archive))
        tolerances = np.geomspace(*env.tolerance_range_pp, self._imitation_tolerances)
        shown = demonstrate(env, task.archive, tolerances)
        imitate(
            self.model, shown, updates=self._imitation_updates, learning_rate=1e-3, smoothing=self._imitation_smoothing
        )


class _Recall:
    """An evaluator that recalls archived outcomes: demonstrations are not charged to the budget."""

    def __init__(self, evaluator: Evaluator, archive: Archive) -> None:
        self.profile: ModelProfile = evaluator.profile
        self.evaluations: int = 0
        self._known = {outcome.plan: outcome for outcome in (archive.reference, *archive)}

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        return self._known[plan]


class _Watch(BaseCallback):
    """Stops at the budget, keeps the entropy above its floor, saves, and draws the learning curve."""

    def __init__(
        self, task: SearchTask, entropy_floor: float, checkpoint: Path | None, curve: list[LearningPoint]
    ) -> None:
        super().__init__()
        self._task = task
        self._floor = entropy_floor
        self._checkpoint = checkpoint
        self._curve = curve

    def _on_step(self) -> bool:
        return self._task.evaluator.evaluations < self._task.budget

    def _on_rollout_end(self) -> None:
        rewards = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        entropy = self._last_entropy()
        if entropy is not None:
            grown = self.model.ent_coef * (1.3 if entropy < self._floor else 0.9)
            self.model.ent_coef = float(np.clip(grown, 0.002, 0.2))
        archive = self._task.archive
        saving = {
            f"{tolerance:g}": 1.0 - archive.best(tolerance).energy_j / archive.reference.energy_j
            for tolerance in self._task.tolerances_pp
        }
        mean_reward = float(np.mean(rewards)) if rewards else float("nan")
        evaluations = self._task.evaluator.evaluations
        self._curve.append(LearningPoint(self.num_timesteps, mean_reward, entropy, evaluations, saving))
        self.logger.record("search/evaluations", evaluations)
        for tolerance, value in saving.items():
            self.logger.record(f"search/saving_at_{tolerance}pp", value)
        self._task.report(evaluations, self._task.budget, f"reward {mean_reward:.3f}")
        if self._checkpoint is not None:
            self.model.save(self._checkpoint)

    def _last_entropy(self) -> float | None:
        loss = self.logger.name_to_value.get("train/entropy_loss")
        return None if loss is None else -float(loss)
