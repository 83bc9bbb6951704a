"""Initial designs: the additive optima that a search starts from."""

from __future__ import annotations

import math

from agents.additive import AdditiveModel, additive_plans
from agents.search_method import SearchTask
from wattbit.plan import PrecisionPlan

# Additive optima spread over all budgets of sensitivity, before the bisection.
_SPREAD = 8
# Budgets closer than this (ratio) differ by no more than chance.
_CLOSE = 1.02


def run_spread_design(task: SearchTask) -> list[PrecisionPlan]:
    """Spend a fifth of the budget on additive optima of log-spaced sensitivity budgets; returns them."""
    plans = additive_plans(task.evaluator.profile, max(1, task.budget // 5))
    task.evaluator.evaluate_all(plans[: task.budget])
    return plans


class BisectedDesign:
    """Runs additive optima for a task, and finds by bisection which of them pass at each tolerance.

    A fixed grid of sensitivity budgets spends most of its plans far from any tolerance. This design halves
    the widest gap between a budget that passes at a tolerance and the next that does not, again and again.

    Args:
        task: The search; plans are run through its evaluator.
    """

    def __init__(self, task: SearchTask) -> None:
        self._task = task
        self._model = AdditiveModel(task.evaluator.profile)
        self._judged_pp: dict[float, float] = {}

    def run(self, evaluations: int) -> None:
        """Run optima until the task's evaluator has run ``evaluations`` plans or all gaps are closed."""
        evaluator = self._task.evaluator
        for nats in self._model.budgets(max(2, min(_SPREAD, evaluations))):
            if evaluator.evaluations >= evaluations:
                return
            self._run(float(nats))
        while evaluator.evaluations < evaluations:
            nats = self._widest_gap()
            if nats is None:
                return
            self._run(nats)

    def _run(self, nats: float) -> None:
        outcome = self._task.evaluator.evaluate(self._model.solve(nats))
        self._judged_pp[nats] = self._task.archive.gate.bound_pp(outcome.counts)

    def _widest_gap(self) -> float | None:
        """The geometric middle of the widest gap between passing and failing budgets; None: all closed."""
        widest, middle = _CLOSE, None
        tried = sorted(self._judged_pp)
        for tolerance_pp in self._task.tolerances_pp:
            passing = [nats for nats in tried if self._judged_pp[nats] <= tolerance_pp]
            low = max(passing, default=tried[0])
            above = [nats for nats in tried if nats > low]
            if above and above[0] / low > widest:
                widest, middle = above[0] / low, math.sqrt(low * above[0])
        return middle
