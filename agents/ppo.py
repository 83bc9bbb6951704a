"""The PPO agent with action masks: one policy for every tolerance, warm-started by imitation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.archive import Archive
from agents.checkpoint import load_agent, save_agent
from agents.imitation import demonstrate, imitate
from agents.ppo_settings import ImitationSettings, RolloutSettings, UpdateSettings
from agents.search_method import SearchTask
from agents.surrogate.plan_arrays import Indices
from agents.training_callbacks import (
    EntropyFloor,
    LearningCurve,
    LearningPoint,
    SaveEachRollout,
    StopAtBudget,
)
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.plan_vec_env import PlanVecEnv
from wattbit.features import Context, FeatureEncoder, PlanBuilder
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

_IMITATION_RATE = 1e-3


@dataclass(slots=True)
class PPOAgent:
    """MaskablePPO on `LayerPrecisionEnv`: opened for a search, then trained by it.

    Attributes:
        make_env: Builds a `LayerPrecisionEnv` around an evaluator; a resumed agent gives it ``pp_per_nat``.
        rollout: What is collected between two updates.
        update: How it learns from that.
        imitation: The warm start.
        tensorboard_log: Folder for TensorBoard; None: no log.
        checkpoint: File the agent is saved to after each rollout and when the training ends or is
            interrupted, and resumed from if it exists, with its own settings; None to save nothing.
        model: The network and its optimiser; None before `open`.
        learning_curve: One point a rollout, those before an interruption included.
        pp_per_nat: The feature encoder's constant that the agent was trained with; of no meaning before
            `open`.
    """

    make_env: Callable[..., LayerPrecisionEnv]
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    imitation: ImitationSettings = field(default_factory=ImitationSettings)
    tensorboard_log: Path | None = None
    checkpoint: Path | None = None
    model: MaskablePPO | None = field(default=None, init=False)
    learning_curve: list[LearningPoint] = field(default_factory=list, init=False)
    pp_per_nat: float = field(default=10.0, init=False)

    @property
    def opened(self) -> MaskablePPO:
        """The model.

        Raises:
            RuntimeError: Before `open`.
        """
        if self.model is None:
            raise RuntimeError("the agent is not open: call open() first")
        return self.model

    def open(self, task: SearchTask, evaluator: Evaluator, gate: SearchGate | None = None) -> MaskablePPO:
        """The model that learns on ``evaluator``: resumed from the checkpoint, or new and warm-started.

        Args:
            task: The search.
            evaluator: What the environments end their episodes with.
            gate: Judges what it answers; None: the environments' own.

        Raises:
            ConfigError: If there is a checkpoint that cannot be resumed.
        """
        arguments = {} if gate is None else {"gate": gate}
        make_venv = partial(self._make_venv, evaluator, **arguments)
        if self.checkpoint is not None and self.checkpoint.exists():
            self.model, self.pp_per_nat, self.learning_curve = load_agent(
                self.checkpoint, lambda pp_per_nat: make_venv(pp_per_nat=pp_per_nat)
            )
            # The seed of the start would draw the same episodes once more.
            self.model.set_random_seed(task.seed + self.model.num_timesteps)
        else:
            self.model = self._start(task, make_venv())
            self.imitate(task)
        return self.model

    def learn(self, task: SearchTask, timesteps: int) -> None:
        """Train the opened agent for so many more timesteps, draw the learning curve and save.

        Raises:
            BudgetSpent: If the budget is spent before.
            SearchInterrupted: If the search has to stop; the agent was saved.
        """
        model = self.opened
        curve = LearningCurve(model, task, self.learning_curve)
        floor = EntropyFloor(model, self.update.entropy_floor)
        try:
            model.learn(
                timesteps,
                callback=[StopAtBudget(task), floor, curve, SaveEachRollout(self.save)],
                tb_log_name="ppo",
                # A count of 0 is a fresh start: a new log.
                reset_num_timesteps=model.num_timesteps == 0,
            )
        finally:
            curve.finish()
            self.save()
            model.logger.close()

    def imitate(self, task: SearchTask, updates: int | None = None, smoothing: float | None = None) -> None:
        """Show the opened agent the archive's best plans, those for the task's own tolerances among them.

        Args:
            task: The search.
            updates: Gradient steps; None: those of the warm start.
            smoothing: See `ImitationSettings`; None: that of the warm start.
        """
        updates = self.imitation.updates if updates is None else updates
        if not updates or not len(task.archive):
            return
        env = self.make_env(_Recall(task.evaluator, task.archive))
        spread = np.geomspace(*env.tolerance_range_pp, self.imitation.tolerances)
        imitate(
            self.opened,
            demonstrate(env, task.archive, np.union1d(spread, task.tolerances_pp)),
            updates=updates,
            learning_rate=_IMITATION_RATE,
            smoothing=self.imitation.smoothing if smoothing is None else smoothing,
        )

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.checkpoint is not None and self.model is not None:
            save_agent(self.model, self.checkpoint, self.pp_per_nat, self.learning_curve)

    def _start(self, task: SearchTask, venv: VecEnv) -> MaskablePPO:
        self.pp_per_nat = float(venv.get_attr("encoder")[0].pp_per_nat)
        n_envs, update = self.rollout.n_envs, self.update
        rounds = max(1, -(-self.rollout.episodes // n_envs))
        # Whole episodes, so that no rollout is without a reward; an update needs two steps at least.
        steps = max(rounds * len(task.evaluator.profile.layers), -(-2 // n_envs))
        return MaskablePPO(
            "MlpPolicy",
            venv,
            n_steps=steps,
            batch_size=divisor_near(steps * n_envs, update.batch_size),
            gamma=1.0,
            learning_rate=update.learning_rate,
            n_epochs=update.n_epochs,
            gae_lambda=update.gae_lambda,
            clip_range=update.clip_range,
            target_kl=update.target_kl,
            ent_coef=update.ent_coef,
            policy_kwargs={"net_arch": list(update.net_arch)},
            tensorboard_log=None if self.tensorboard_log is None else str(self.tensorboard_log),
            seed=task.seed,
            device="cpu",
        )

    def _make_venv(self, evaluator: Evaluator, **arguments: Any) -> VecEnv:
        make_env = partial(self.make_env, evaluator, **arguments)
        return VecMonitor(PlanVecEnv([make_env] * self.rollout.n_envs))


def draw_plans(
    model: MaskablePPO, encoder: FeatureEncoder, tolerances_pp: Sequence[float], *, greedy: bool = False
) -> Indices:
    """Plans drawn from the policy, one for each tolerance, (plans, layers).

    Args:
        model: The policy.
        encoder: Encodes observations as those it was trained on.
        tolerances_pp: The tolerances, percentage points.
        greedy: True for the most probable precision of each layer.
    """
    builders = [PlanBuilder(encoder, Context(tolerance)) for tolerance in tolerances_pp]
    chosen = []
    for _ in encoder.profile.layers:
        observations = np.stack([builder.observation for builder in builders])
        masks = np.stack([builder.mask for builder in builders])
        actions, _ = model.predict(observations, action_masks=masks, deterministic=greedy)
        for builder, action in zip(builders, actions, strict=True):
            builder.assign(action)
        chosen.append(actions)
    return np.stack(chosen, axis=1).astype(np.intp)


def divisor_near(number: int, wanted: int) -> int:
    """The divisor of ``number`` above 1 whose ratio to ``wanted`` is nearest to 1."""
    divisors = [d for d in range(2, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


class _Recall:
    """An evaluator that recalls archived outcomes: demonstrations are not charged to the budget."""

    def __init__(self, evaluator: Evaluator, archive: Archive) -> None:
        self.profile: ModelProfile = evaluator.profile
        self.evaluations: int = 0
        self._known = archive.known

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        return self._known[plan]

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        return [self._known[plan] for plan in plans]
