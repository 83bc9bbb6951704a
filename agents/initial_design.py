"""The first plans a search runs: additive optima, closer and closer to where each tolerance breaks."""

from __future__ import annotations

import math

from agents.additive import AdditiveModel
from agents.search_method import SearchTask

# Additive optima spread over all budgets of sensitivity, before any tolerance is looked for.
_SPREAD = 8
# Budgets closer than this (ratio) differ by no more than chance.
_CLOSE = 1.02


class AdditiveSeeds:
    """Runs additive optima (`agents.additive`) for a task, and finds by bisection which of them pass.

    A fixed grid of budgets spends most of its plans where no tolerance is. Here the widest gap between a
    budget that passes a tolerance and the next that does not is halved, again and again.

    Args:
        task: The search; plans are run through its evaluator.
    """

    def __init__(self, task: SearchTask) -> None:
        self._task = task
        self._model = AdditiveModel(task.evaluator.profile)
        self._judged_pp: dict[float, float] = {}

    def run(self, evaluations: int) -> None:
        """Run optima until the task's evaluator has run ``evaluations`` plans or nothing is left to halve."""
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
