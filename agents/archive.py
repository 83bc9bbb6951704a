"""Every plan ever evaluated: written to disk at once, and the best of them for any tolerance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from agents.stopping import BudgetSpent
from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from wattbit.errors import OutputError, WattbitError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import parse_json, require_number

_MOST_BYTES = 2**26


class Archive:
    """Outcomes by plan, in order of evaluation, each with the method that evaluated it first.

    The result for a tolerance is the cheapest plan that passes the search gate, or the reference plan if none
    does. With a gate that judges each plan by itself it can only improve as the archive grows.

    Args:
        reference: Outcome of the reference plan.
        gate: The search gate.
        allowed: Whether an outcome holds the limits that need no samples, such as latency; None: all do. The
            reference is always allowed.
        judge: An archive with every plan of this one, by whose outcomes drops are judged; None: this one.
    """

    def __init__(
        self,
        reference: Outcome,
        gate: SearchGate,
        allowed: Callable[[Outcome], bool] | None = None,
        judge: Archive | None = None,
    ) -> None:
        self._reference = reference
        self._gate = gate
        self._allowed = allowed
        self._judge = judge
        self._outcomes: dict[PrecisionPlan, Outcome] = {}
        self._methods: dict[PrecisionPlan, str] = {}
        self._bounds: dict[PrecisionPlan, float] = {}

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes.values())

    def __contains__(self, plan: object) -> bool:
        return plan in self._outcomes

    @property
    def gate(self) -> SearchGate:
        """The search gate."""
        return self._gate

    @property
    def reference(self) -> Outcome:
        """Outcome of the reference plan."""
        return self._reference

    @property
    def known(self) -> dict[PrecisionPlan, Outcome]:
        """Every outcome by plan, the reference's first."""
        return {self._reference.plan: self._reference, **self._outcomes}

    def method(self, plan: PrecisionPlan) -> str:
        """The method that evaluated ``plan`` first."""
        return self._methods[plan]

    def add(self, outcome: Outcome, method: str) -> bool:
        """Add an outcome; False if its plan is there already."""
        if outcome.plan in self._outcomes:
            return False
        self._outcomes[outcome.plan] = outcome
        self._methods[outcome.plan] = method
        self._bounds.clear()  # what one plan shows may change how the others are judged
        return True

    def allows(self, outcome: Outcome) -> bool:
        """True if the outcome holds the limits that need no samples."""
        return self._allowed is None or self._allowed(outcome)

    def bound_pp(self, outcome: Outcome) -> float:
        """The drop that the gate judges the outcome by, percentage points; the reference's is 0."""
        bound = self._judged().get(outcome.plan)
        return self._gate.bound_pp(outcome.counts) if bound is None else bound

    def passes(self, outcome: Outcome, tolerance_pp: float) -> bool:
        """True if the outcome passes the gate; the reference always does."""
        return self.bound_pp(outcome) <= tolerance_pp

    def best(self, tolerance_pp: float) -> Outcome:
        """The cheapest outcome that may be proposed at ``tolerance_pp``; among equals the least divergent.

        It passes the gate and is allowed; the reference where no such outcome is cheaper.
        """
        feasible = [o for o in self if self.passes(o, tolerance_pp) and self.allows(o)]
        return min([self._reference, *feasible], key=lambda outcome: (outcome.energy_j, outcome.divergence))

    def _judged(self) -> dict[PrecisionPlan, float]:
        """The judged drop of every plan, percentage points."""
        if self._judge is not None:
            return self._judge._judged()
        if not self._bounds:
            outcomes = list(self)
            plans = [outcome.plan for outcome in outcomes]
            self._bounds = dict(zip(plans, self._gate.bounds_pp(outcomes), strict=True))
            # The reference cannot drop against itself.
            self._bounds[self._reference.plan] = 0.0
        return self._bounds


class ArchivingEvaluator:
    """An evaluator that puts every outcome into archives under a method's name.

    ``evaluations`` counts the distinct plans *this method* asked for, even if another method had run them
    before: methods are compared at equal cost.

    Args:
        evaluator: Runs the plans.
        method: The method's name.
        archives: Where outcomes go.
        budget: Distinct plans the method may ask for; None for no limit.
    """

    def __init__(
        self, evaluator: Evaluator, method: str, archives: tuple[Archive, ...], budget: int | None = None
    ) -> None:
        self._evaluator = evaluator
        self._method = method
        self._archives = archives
        self._budget = budget
        self._asked: set[PrecisionPlan] = set()

    @property
    def profile(self) -> ModelProfile:
        """The model's profile."""
        return self._evaluator.profile

    @property
    def evaluations(self) -> int:
        """Distinct plans this method asked for."""
        return len(self._asked)

    def charge(self, plans: Iterable[PrecisionPlan]) -> None:
        """Count plans that this method asked for in an earlier run."""
        self._asked.update(plans)

    def evaluate(self, plan: PrecisionPlan) -> Outcome:
        """Evaluate and archive ``plan``.

        Raises:
            BudgetSpent: If it is new to the method, and the budget is spent.
        """
        if not self._within_budget([plan]):
            raise self._spent()
        outcome = self._evaluator.evaluate(plan)
        self._keep(outcome)
        return outcome

    def evaluate_all(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        """Evaluate and archive ``plans``; each distinct one is charged once.

        Raises:
            BudgetSpent: If the budget ends within the list; the plans before that are evaluated and archived.
        """
        affordable = self._within_budget(plans)
        outcomes = self._run(affordable)
        if len(affordable) < len(plans):
            raise self._spent()
        return outcomes

    def _within_budget(self, plans: Sequence[PrecisionPlan]) -> Sequence[PrecisionPlan]:
        """``plans`` up to the first that is one too many."""
        if self._budget is None:
            return plans
        new: set[PrecisionPlan] = set()
        for index, plan in enumerate(plans):
            if plan not in self._asked and plan not in new:
                if len(self._asked) + len(new) >= self._budget:
                    return plans[:index]
                new.add(plan)
        return plans

    def _run(self, plans: Sequence[PrecisionPlan]) -> list[Outcome]:
        outcomes = self._evaluator.evaluate_all(plans)
        for outcome in outcomes:
            self._keep(outcome)
        return outcomes

    def _keep(self, outcome: Outcome) -> None:
        self._asked.add(outcome.plan)
        for archive in self._archives:
            archive.add(outcome, self._method)

    def _spent(self) -> BudgetSpent:
        return BudgetSpent(f"{self._method} has evaluated {len(self._asked)} plans, its budget")


class Journal:
    """Outcomes as JSON lines, each written at once, so that a crash loses none.

    Only the last line can be torn by a crash; it is dropped when the journal is read again. Used as a context
    manager it closes its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(self, outcome: Outcome, method: str) -> None:
        """Write one outcome and flush it.

        Raises:
            OutputError: If the file cannot be written.
        """
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(_to_record(outcome, method), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; free space or choose another folder"
            ) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, profile: ModelProfile) -> list[tuple[Outcome, str]]:
        """The outcomes written so far, with the method of each; energy and latency come from ``profile``.

        A torn last line is cut off, so that the next one starts on a line of its own.

        Raises:
            OutputError: If the file cannot be read, or a line other than the last is damaged.
        """
        return [self._parse(number, line, profile) for number, line in enumerate(self._whole_lines(), 1)]

    def _whole_lines(self) -> list[bytes]:
        try:
            data = read_regular(self._path, _MOST_BYTES) if self._path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self._path, whole)
        except OSError as error:
            raise OutputError(
                f"cannot read {self._path}: {error.strerror}; make it readable or start a new run"
            ) from None
        return data[:whole].split(b"\n")[:-1]

    def _parse(self, number: int, line: bytes, profile: ModelProfile) -> tuple[Outcome, str]:
        try:
            return _from_record(parse_json(line), profile)
        except (
            ArithmeticError, ValueError, LookupError, TypeError, AttributeError, WattbitError
        ) as error:  # fmt: skip
            raise OutputError(
                f"{self._path} line {number} is damaged ({error}); remove that line and resume again"
            ) from None


def _to_record(outcome: Outcome, method: str) -> dict[str, Any]:
    counts = outcome.counts
    return {
        "method": method,
        "precisions": dict(outcome.plan),
        "samples": counts.samples,
        "reference_only": counts.reference_only,
        "plan_only": counts.plan_only,
        "divergence": outcome.divergence,
    }


def _from_record(record: Mapping[str, Any], profile: ModelProfile) -> tuple[Outcome, str]:
    plan = profile.require_plan(PrecisionPlan(record["precisions"]))
    counts = [record[name] for name in ("samples", "reference_only", "plan_only")]
    if not all(type(count) is int for count in counts) or not isinstance(record["method"], str):
        raise ValueError(f"counts are {counts}, method is {record['method']!r:.80}")
    outcome = Outcome(
        plan=plan,
        energy_j=profile.plan_energy_j(plan),
        latency_ms=profile.plan_latency_ms(plan),
        counts=PairedCounts(*counts),
        divergence=require_number(record["divergence"], "divergence"),
    )
    return outcome, record["method"]
