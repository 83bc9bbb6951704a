"""Search methods that train a PPO agent; this one on the evaluator itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from agents.ppo import PPOAgent
from agents.search_method import SearchTask
from agents.stopping import BudgetSpent


@dataclass(frozen=True, slots=True)
class PPOSearch(ABC):
    """A search method that trains an agent.

    Attributes:
        ppo: The agent; it can be used however the search ended.
        total_timesteps: Environment steps to train it for, rounded up to whole rollouts.
    """

    name: ClassVar[str] = "ppo"
    ppo: PPOAgent
    total_timesteps: int = 20_000

    @abstractmethod
    def search(self, task: SearchTask) -> None:
        """Open, train and save the agent, and spend the budget of ``task.evaluator``.

        Raises:
            ConfigError: If there is a checkpoint that cannot be resumed.
            SearchInterrupted: If the search has to stop; the agent was saved.
        """


@dataclass(frozen=True, slots=True)
class DirectPPO(PPOSearch):
    """Every episode ends with a plan that is run, if it is new: simple, but it takes many evaluations."""

    def search(self, task: SearchTask) -> None:
        """Train on the evaluator itself until the budget or the timesteps are spent."""
        left = self.total_timesteps - self.ppo.open(task, task.evaluator).num_timesteps
        if left > 0 and task.evaluator.evaluations < task.budget:
            with suppress(BudgetSpent):
                self.ppo.learn(task, left)
