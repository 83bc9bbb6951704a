"""Running every search method on one evaluator, each at its own cost, all into one archive."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agents.archive import Archive, ArchivingEvaluator, Journal
from agents.limits import StopRule
from agents.search_method import SearchInterrupted, SearchMethod, SearchTask
from envs.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from wattbit.plan import PrecisionPlan

Listener = Callable[[str, int, int, str], None]
"""Called with (method, done, total, note) as a method goes on."""


@dataclass(frozen=True, slots=True)
class MethodRun:
    """What one method found by itself: its archive, the plans it asked for, the time it took (seconds)."""

    name: str
    archive: Archive
    evaluations: int
    seconds: float


@dataclass(slots=True)
class Comparison:
    """Methods run one after another on the same evaluator.

    Every outcome goes into the method's own archive, by which it is judged, into the common archive, by which
    PPO is warm-started and the final result is chosen, and into the journal.
    """

    evaluator: Evaluator
    reference: Outcome
    gate: SearchGate
    tolerances_pp: tuple[float, ...]
    stop: StopRule
    journal: Journal
    listener: Listener
    archive: Archive = field(init=False)
    runs: list[MethodRun] = field(default_factory=list)
    on_new: Callable[[Outcome, str], None] = field(default=lambda outcome, method: None)

    def __post_init__(self) -> None:
        self.archive = Archive(self.reference, self.gate)

    def restore(self, entries: Iterable[tuple[Outcome, str]]) -> None:
        """Put what an earlier run found into the common archive."""
        for outcome, method in entries:
            self.archive.add(outcome, method)

    def run(self, method: SearchMethod, budget: int, seed: int, *, seeded: bool = False) -> bool:
        """Run ``method``; False if it had to stop early.

        Args:
            method: The method.
            budget: Distinct plans it may ask for.
            seed: Its seed.
            seeded: True if it starts from the common archive rather than an empty one; its result is then the
                common archive's.
        """
        own = self.archive if seeded else Archive(self.reference, self.gate)
        evaluator = _Recording(self, method.name, own)
        if seeded:
            evaluator.charge(o.plan for o in self.archive if self.archive.method(o.plan) == method.name)
        task = SearchTask(
            evaluator, own, self.tolerances_pp, budget, seed,
            lambda done, total, note: self.listener(method.name, done, total, note),
        )  # fmt: skip
        started = time.perf_counter()
        finished = True
        try:
            method.search(task)
        except SearchInterrupted:
            finished = False
        evaluations = len(self.archive) if seeded else evaluator.evaluations
        self.runs.append(MethodRun(method.name, own, evaluations, time.perf_counter() - started))
        return finished

    def pp_per_nat(self) -> float:
        """How many percentage points of drop a nat of summed sensitivity has cost so far.

        The median over archived plans with a drop between 0.2 and 20 pp; 10 where there is none.
        """
        profile = self.evaluator.profile
        ratios = [
            outcome.drop_pp / nats
            for outcome in self.archive
            if 0.2 <= outcome.drop_pp <= 20.0 and (nats := profile.plan_sensitivity(outcome.plan)) > 0.0
        ]
        return statistics.median(ratios) if ratios else 10.0


class _Recording(ArchivingEvaluator):
    """Checks the stop rule before each evaluation and writes what is new to the journal."""

    def __init__(self, comparison: Comparison, method: str, own: Archive) -> None:
        # The common archive is filled below, where it shows what is new.
        super().__init__(comparison.evaluator, method, () if own is comparison.archive else (own,))
        self._comparison = comparison

    def charge(self, plans: Iterable[PrecisionPlan]) -> None:
        """Count plans that this method asked for in an earlier run."""
        self._asked.update(plans)

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        self._comparison.stop.check()
        outcome = super().evaluate(plan)
        if self._comparison.archive.add(outcome, self._method):
            self._comparison.journal.append(outcome, self._method)
            self._comparison.on_new(outcome, self._method)
        return outcome
