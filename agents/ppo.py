"""PPO with action masks: one policy for every tolerance, warm-started by imitation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.archive import Archive
from agents.checkpoint import load_agent, save_agent
from agents.imitation import demonstrate, imitate
from agents.search_method import SearchTask
from agents.stopping import BudgetSpent
from agents.training_callback import LearningPoint, LearningWatch
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.plan_vec_env import PlanVecEnv
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class SearchLoop(Protocol):
    """How an agent spends a search's budget: what it learns on, and which plans are run."""

    def run(self, agent: PPO, task: SearchTask) -> None:
        """Open, train and save ``agent``, and spend the budget of ``task.evaluator``."""


class DirectLoop:
    """Every episode ends with a plan that is run, if it is new: simple, and greedy for evaluations."""

    def run(self, agent: PPO, task: SearchTask) -> None:
        """Train on the evaluator itself until the budget or the timesteps are spent."""
        model = agent.open(task, task.evaluator)
        left = agent.total_timesteps - model.num_timesteps
        if left > 0 and task.evaluator.evaluations < task.budget:
            with suppress(BudgetSpent):
                agent.learn(task, left)


class PPO:
    """MaskablePPO on `LayerPrecisionEnv`, within a budget of evaluated plans.

    Args:
        make_env: Builds a `LayerPrecisionEnv` around an evaluator; a resumed agent gives it ``pp_per_nat``.
        loop: How the budget is spent; None: `DirectLoop`.
        total_timesteps: Environment steps, rounded up to whole rollouts.
        n_envs: Environments stepped side by side.
        episodes_per_rollout: Episodes between two updates, rounded up to a multiple of ``n_envs``.
        learning_rate: Adam's.
        batch_size: Minibatch size; the divisor of a rollout's steps that comes nearest is used.
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
        checkpoint: File the agent is saved to after each rollout and when the search ends or is interrupted,
            and resumed from if it exists, with its own settings; None to save nothing.

    Attributes:
        total_timesteps: Environment steps it is to learn for.
        model: The agent; None before `search`. It can be used however the search ended.
        learning_curve: One point a rollout, those before an interruption included.
        pp_per_nat: The feature encoder's constant that the agent was trained with; of no meaning before
            `search`.
    """

    name = "ppo"

    def __init__(
        self,
        *,
        make_env: Callable[..., LayerPrecisionEnv],
        loop: SearchLoop | None = None,
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
        self._loop = loop or DirectLoop()
        self.total_timesteps = total_timesteps
        self._n_envs = n_envs
        self._episodes_per_rollout = episodes_per_rollout
        self._batch_size = batch_size
        self._new_agent = partial(
            MaskablePPO,
            "MlpPolicy",
            gamma=1.0,
            learning_rate=learning_rate,
            n_epochs=n_epochs,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            target_kl=target_kl,
            ent_coef=ent_coef,
            policy_kwargs={"net_arch": list(net_arch)},
            tensorboard_log=tensorboard_log,
            device="cpu",
        )
        self._entropy_floor = entropy_floor
        self._imitation_updates = imitation_updates
        self._imitation_tolerances = imitation_tolerances
        self._imitation_smoothing = imitation_smoothing
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self.model: MaskablePPO | None = None
        self.learning_curve: list[LearningPoint] = []
        self.pp_per_nat = 10.0

    def search(self, task: SearchTask) -> None:
        """Spend the budget as the loop does.

        Raises:
            ConfigError: If there is a checkpoint that cannot be resumed.
            SearchInterrupted: If the search has to stop; the agent was saved and can be used.
        """
        self._loop.run(self, task)

    def open(self, task: SearchTask, evaluator: Evaluator, gate: SearchGate | None = None) -> MaskablePPO:
        """The agent that learns on ``evaluator``: resumed from the checkpoint, or new and warm-started.

        Args:
            task: The search.
            evaluator: What the environments end their episodes with.
            gate: Judges what it answers; None: the environments' own.

        Raises:
            ConfigError: If there is a checkpoint that cannot be resumed.
        """
        arguments = {} if gate is None else {"gate": gate}
        make_venv = partial(self._make_venv, evaluator, **arguments)
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.exists():
            self.model = self._resume(checkpoint, task, make_venv)
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
        model = self._opened()
        watch = LearningWatch(model, task, self._entropy_floor, self.learning_curve, self.save)
        try:
            # A count of 0 is a fresh start: a new log.
            fresh = model.num_timesteps == 0
            model.learn(timesteps, callback=watch, tb_log_name="ppo", reset_num_timesteps=fresh)
        finally:
            watch.finish()
            model.logger.close()

    def imitate(self, task: SearchTask, updates: int | None = None, smoothing: float | None = None) -> None:
        """Show the opened agent the archive's best plans, those for the task's own tolerances among them.

        Args:
            task: The search.
            updates: Steps; None: those of the warm start.
            smoothing: See `agents.imitation.imitate`; None: that of the warm start.
        """
        updates = self._imitation_updates if updates is None else updates
        if not updates or not len(task.archive):
            return
        env = self._make_env(_Recall(task.evaluator, task.archive))
        spread = np.geomspace(*env.tolerance_range_pp, self._imitation_tolerances)
        imitate(
            self._opened(),
            demonstrate(env, task.archive, np.union1d(spread, task.tolerances_pp)),
            updates=updates,
            learning_rate=1e-3,
            smoothing=self._imitation_smoothing if smoothing is None else smoothing,
        )

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self._checkpoint is not None and self.model is not None:
            save_agent(self.model, self._checkpoint, self.pp_per_nat, self.learning_curve)

    def _opened(self) -> MaskablePPO:
        if self.model is None:
            raise RuntimeError("the agent is not open: call open() first")
        return self.model

    def _start(self, task: SearchTask, venv: VecEnv) -> MaskablePPO:
        self.pp_per_nat = float(venv.get_attr("encoder")[0].pp_per_nat)
        rounds = max(1, -(-self._episodes_per_rollout // self._n_envs))
        # Whole episodes, so that no rollout is without a reward; an update needs two steps at least.
        steps = max(rounds * len(task.evaluator.profile.layers), -(-2 // self._n_envs))
        return self._new_agent(
            env=venv,
            n_steps=steps,
            batch_size=divisor_near(steps * self._n_envs, self._batch_size),
            seed=task.seed,
        )

    def _resume(self, checkpoint: Path, task: SearchTask, make_venv: Callable[..., VecEnv]) -> MaskablePPO:
        model, self.pp_per_nat, self.learning_curve = load_agent(
            checkpoint, lambda pp_per_nat: make_venv(pp_per_nat=pp_per_nat)
        )
        # The seed of the start would draw the same episodes once more.
        model.set_random_seed(task.seed + model.num_timesteps)
        return model

    def _make_venv(self, evaluator: Evaluator, **arguments: Any) -> VecEnv:
        return VecMonitor(PlanVecEnv([partial(self._make_env, evaluator, **arguments)] * self._n_envs))


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
