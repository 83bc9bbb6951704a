"""The interface of search methods: evaluator, tolerances, budget and seed in; evaluated plans out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agents.archive import Archive
from envs.evaluators.evaluator import Evaluator


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What a method is asked to do.

    Attributes:
        evaluator: Evaluates plans; what it evaluated is the method's result.
        archive: The method's own archive: what it has evaluated so far (and what it was seeded with).
        tolerances_pp: The tolerances to serve.
        budget: Distinct plans the method may evaluate; the next one is refused with `BudgetSpent`.
        seed: Seeds everything random.
        report: Called with (done, total, note) as the search goes on.
        check: Raises `SearchInterrupted` if the search has to stop. Every evaluation calls it; long work
            between evaluations should, too.
    """

    evaluator: Evaluator
    archive: Archive
    tolerances_pp: tuple[float, ...]
    budget: int
    seed: int
    report: Callable[[int, int, str], None] = field(default=lambda done, total, note: None)
    check: Callable[[], None] = field(default=lambda: None)


class SearchMethod(Protocol):
    """A way to find plans."""

    @property
    def name(self) -> str:
        """The method's name in tables and files."""

    def search(self, task: SearchTask) -> None:
        """Evaluate plans through ``task.evaluator`` until satisfied or the budget is spent."""


def spread(items: Sequence[object], count: int) -> list[int]:
    """At most ``count`` indices into ``items``, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(range(len(items)))
    if count == 1:
        return [len(items) - 1]
    return sorted({round(i * (len(items) - 1) / (count - 1)) for i in range(count)})
