"""Runs search methods one after another on one evaluator, each with its own budget, all into one archive."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agents.archive import Archive, ArchivingEvaluator, Journal
from agents.search_method import SearchMethod, SearchTask
from agents.stopping import BudgetSpent, SearchInterrupted, StopRule
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

# Plans evaluated between two checks of the stop rule: the most that an interruption loses.
_CHUNK = 32

Listener = Callable[[str, int, int, str], None]
"""Called with (method, done, total, note) as a method goes on."""


@dataclass(frozen=True, slots=True)
class MethodRun:
    """What one method found: its archive, the number of plans it asked for, the time it took (seconds)."""

    name: str
    archive: Archive
    evaluations: int
    seconds: float


@dataclass(slots=True)
class SearchComparison:
    """Methods run one after another on the same evaluator.

    Every outcome goes into the method's own archive, which it is judged by, into the common archive, which
    warm-starts PPO and gives the final result, and into the journal.

    Attributes:
        evaluator: Runs plans.
        reference: Outcome of the reference plan.
        gate: The search gate.
        tolerances_pp: The tolerances to serve.
        stop: Says when everything has to stop.
        journal: Where each outcome is written, once for every method that asked for it.
        listener: Told how a method goes on.
        archive: The common archive.
        runs: What each method found, in the order they ran.
        on_new: Called with each outcome that is new to the common archive, and the method's name.
        allowed: See `Archive`.
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
    allowed: Callable[[Outcome], bool] | None = None
    _written: dict[str, set[PrecisionPlan]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.archive = Archive(self.reference, self.gate, self.allowed)

    def restore(self, entries: Iterable[tuple[Outcome, str]]) -> None:
        """Put what an earlier run found into the common archive.

        Raises:
            ConfigError: If it was found on another number of samples.
        """
        samples = self.reference.counts.samples
        for outcome, method in entries:
            if outcome.counts.samples != samples:
                raise ConfigError(
                    f"the interrupted run searched on {outcome.counts.samples} samples, this one on "
                    f"{samples}; use the same workload settings, or start a new run"
                )
            self.archive.add(outcome, method)
            self._written.setdefault(method, set()).add(outcome.plan)

    def keep(self, outcome: Outcome, method: str) -> None:
        """Put an outcome into the common archive, and into the journal if the method is new to it there."""
        is_new = self.archive.add(outcome, method)
        written = self._written.setdefault(method, set())
        if outcome.plan not in written:
            self.journal.append(outcome, method)
            written.add(outcome.plan)
        if is_new:
            self.on_new(outcome, method)

    def run(self, method: SearchMethod, budget: int, seed: int, *, seeded: bool = False) -> bool:
        """Run ``method``; False if it was interrupted.

        Args:
            method: The method.
            budget: Distinct plans it may ask for; those of an interrupted run count, if seeded.
            seed: Its seed.
            seeded: True if it starts from the common archive, which is then its result; False: from an empty
                one.
        """
        # Judged by all outcomes, so that no method's result passes where the common result would not.
        own = self.archive if seeded else Archive(self.reference, self.gate, self.allowed, self.archive)
        evaluator = _Recording(self, method.name, own, budget)
        if seeded:  # other methods run again from the start and ask for the same plans
            evaluator.charge(self._written.get(method.name, ()))
        task = SearchTask(
            evaluator, own, self.tolerances_pp, budget, seed,
            lambda done, total, note: self.listener(method.name, done, total, note), self.stop.check,
        )  # fmt: skip
        started = time.perf_counter()
        finished = True
        try:
            method.search(task)
        except BudgetSpent:
            pass
        except SearchInterrupted:
            finished = False
        evaluations = len(self.archive) if seeded else evaluator.evaluations
        self.runs.append(MethodRun(method.name, own, evaluations, time.perf_counter() - started))
        return finished

    def pp_per_nat(self) -> float:
        """`observed_pp_per_nat` of the methods run so far.

        Plans of an interrupted run count once their method has asked for them again.
        """
        found = {outcome.plan: outcome for run in self.runs for outcome in run.archive}
        return observed_pp_per_nat(self.evaluator.profile, found.values())


def observed_pp_per_nat(profile: ModelProfile, outcomes: Iterable[Outcome]) -> float:
    """How many percentage points of drop a nat of summed sensitivity has cost.

    The median over the plans with a drop between 0.2 and 20 pp; 10 where there is none.
    """
    ratios = [
        outcome.drop_pp / nats
        for outcome in outcomes
        if 0.2 <= outcome.drop_pp <= 20.0 and (nats := profile.plan_sensitivity(outcome.plan)) > 0.0
    ]
    return statistics.median(ratios) if ratios else 10.0


class _Recording(ArchivingEvaluator):
    """Checks the stop rule before each evaluation, and puts outcomes into the common archive."""

    def __init__(self, comparison: SearchComparison, method: str, own: Archive, budget: int) -> None:
        # The common archive is filled by `SearchComparison.keep`.
        super().__init__(comparison.evaluator, method, () if own is comparison.archive else (own,), budget)
        self._comparison = comparison

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        self._comparison.stop.check()
        return super().evaluate(plan)

    def _run(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        # Neighbours in this order share their first layers, which an evaluator can run once for both.
        ordered = sorted(dict.fromkeys(plans), key=lambda plan: tuple(plan.values()))
        found: dict[PrecisionPlan, Outcome] = {}
        for start in range(0, len(ordered), _CHUNK):
            self._comparison.stop.check()
            chunk = ordered[start : start + _CHUNK]
            found.update(zip(chunk, super()._run(chunk), strict=True))
        return [found[plan] for plan in plans]

    def _keep(self, outcome: Outcome) -> None:
        super()._keep(outcome)
        self._comparison.keep(outcome, self._method)
