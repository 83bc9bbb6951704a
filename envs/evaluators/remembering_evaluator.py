"""What every evaluator that runs plans has in common: each distinct plan is run once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from envs.evaluators.evaluator import Outcome
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class RememberingEvaluator(ABC):
    """Runs plans that are new and recalls the outcomes of others.

    Args:
        profile: The model's profile.
        known: Outcomes from an earlier run.
    """

    def __init__(self, profile: ModelProfile, known: Mapping[PrecisionPlan, Outcome] | None = None) -> None:
        self._profile = profile
        self._outcomes = dict(known or {})

    @property
    def profile(self) -> ModelProfile:
        """The model's profile."""
        return self._profile

    @property
    def evaluations(self) -> int:
        """Number of distinct plans whose outcome is known."""
        return len(self._outcomes)

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        """The outcome of ``plan``; raises as `evaluate_all`."""
        outcome = self._outcomes.get(plan)
        return self.evaluate_all([plan])[0] if outcome is None else outcome

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        """The outcomes of ``plans``, in the order given.

        Raises:
            PlanError: If a new plan is for another model or uses a precision a layer does not support.
        """
        new = [plan for plan in dict.fromkeys(plans) if plan not in self._outcomes]
        if new:
            for outcome in self._run(new):
                self._outcomes[outcome.plan] = outcome
        return [self._outcomes[plan] for plan in plans]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # Gymnasium copies the arguments of environments; what is remembered is to be shared, not copied.
        return self

    @abstractmethod
    def _run(self, plans: Sequence[PrecisionPlan]) -> Iterable[Outcome]:
        """The outcomes of different plans of which nothing is known yet, in any order."""
