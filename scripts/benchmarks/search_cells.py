"""One cell of the comparison: a method on a problem with a budget and a seed; finished cells are kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.archive import Archive, ArchivingEvaluator
from agents.export import export_policy
from agents.ppo import PPOAgent
from agents.ppo_search import PPOSearch
from agents.search_method import SearchMethod, SearchTask
from agents.stopping import BudgetSpent
from agents.surrogate.plan_arrays import PlanArrays
from envs.evaluators.evaluator import Evaluator, Outcome
from scripts.benchmarks.search_methods import GATES, METHODS, TOLERANCES_PP
from scripts.benchmarks.search_problems import open_problem
from scripts.benchmarks.worker_pool import run_all
from wattbit.features import Context, FeatureEncoder
from wattbit.plan import PrecisionPlan
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.strict_json import parse_json

_SCHEMA = 1


@dataclass(frozen=True, slots=True, order=True)
class SearchCell:
    """What is run.

    Attributes:
        problem: The network.
        method: The method.
        budget: Distinct plans it may evaluate.
        seed: The method's seed, and a synthetic network's.
        gate: The gate that the method searches with: ``raw`` or ``shipped``.
    """

    problem: str
    method: str
    budget: int
    seed: int
    gate: str

    @property
    def file_name(self) -> str:
        """Where it is kept."""
        return f"{self.problem}-{self.method}-{self.budget}-{self.seed}-{self.gate}.json"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a method found.

    Attributes:
        cell: What was run.
        reference: Outcome of the reference plan, which is given to every method.
        outcomes: What the method evaluated, in its order.
        policy: What the greedy policy proposes for each tolerance (pp), without any archive; empty for
            methods that learn none.
        seconds: Wall time of the search.
        cpu_seconds: Processor time of the search.
    """

    cell: SearchCell
    reference: Outcome
    outcomes: tuple[Outcome, ...]
    policy: Mapping[float, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def run_cell(cell: SearchCell) -> CellResult:
    """Run the cell's method as it is shipped."""
    return run_search(METHODS[cell.method](GATES[cell.gate]()), cell)


def run_search(
    method: SearchMethod, cell: SearchCell, prepare: Callable[[SearchTask], None] = lambda task: None
) -> CellResult:
    """Run one search from an empty archive.

    Args:
        method: The method.
        cell: The problem, the budget, the seed and the gate.
        prepare: Called with the task before the search.
    """
    problem = open_problem(cell.problem, cell.seed)
    reference = problem.evaluate(problem.profile.reference_plan)
    archive = Archive(reference, GATES[cell.gate]())
    evaluator = ArchivingEvaluator(problem, cell.method, (archive,), cell.budget)
    task = SearchTask(evaluator, archive, TOLERANCES_PP, cell.budget, cell.seed)
    prepare(task)
    wall, cpu = time.perf_counter(), time.process_time()
    with suppress(BudgetSpent):
        method.search(task)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    policy = greedy_plans(method.ppo, problem) if isinstance(method, PPOSearch) else {}
    return CellResult(cell, reference, tuple(archive), policy, seconds, cpu_seconds)


def greedy_plans(agent: PPOAgent, problem: Evaluator) -> dict[float, Outcome]:
    """What the policy proposes for each tolerance (pp) at its most probable choices, as in a controller."""
    policy = export_policy(agent.opened, problem.profile.precisions, agent.pp_per_nat)
    encoder = FeatureEncoder(problem.profile, agent.pp_per_nat)
    return {t: problem.evaluate(policy.propose(encoder, Context(t))) for t in TOLERANCES_PP}


def run_cells(
    cells: Sequence[SearchCell], cache: Path | None = None, workers: int = 1
) -> dict[SearchCell, CellResult]:
    """Run ``cells``, except those kept in ``cache``; a line on stderr reports each one that finishes.

    Args:
        cells: What to run.
        cache: Folder that finished cells are kept in; None: nowhere.
        workers: Processes; 1 runs all in this one.
    """
    results = {cell: found for cell in cells if (found := _load(cell, cache)) is not None}
    left = [cell for cell in cells if cell not in results]
    for done, (_, result) in enumerate(run_all(run_cell, left, workers), len(results) + 1):
        results[result.cell] = result
        if cache is not None:
            _save(result, cache)
        what = f"{result.cell.file_name.removesuffix('.json')}: {len(result.outcomes)} plans"
        print(f"{done}/{len(cells)} {what} in {result.seconds:.1f} s", file=sys.stderr, flush=True)
    return {cell: results[cell] for cell in cells}


# --- cache --------------------------------------------------------------------------------------------------


def _save(result: CellResult, cache: Path) -> None:
    problem = open_problem(result.cell.problem, result.cell.seed)
    record = {
        "schema": _SCHEMA,
        "cell": asdict(result.cell),
        "gate": repr(GATES[result.cell.gate]()),
        "plans": _rows(problem, [outcome.plan for outcome in result.outcomes]),
        "policy": [[t, *_rows(problem, [o.plan])] for t, o in result.policy.items()],
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
    }
    path = cache / result.cell.file_name
    write_atomically(path, json.dumps(record))


def _load(cell: SearchCell, cache: Path | None) -> CellResult | None:
    """The kept result; outcomes come from the problem, which gives the same ones again."""
    path = None if cache is None else cache / cell.file_name
    if path is None or not path.exists():
        return None
    record: dict[str, Any] = parse_json(path.read_bytes())
    expected = (_SCHEMA, asdict(cell), repr(GATES[cell.gate]()))
    if (record["schema"], record["cell"], record["gate"]) != expected:
        return None
    problem = open_problem(cell.problem, cell.seed)
    policy = {float(t): problem.evaluate(_plans(problem, [row])[0]) for t, row in record["policy"]}
    return CellResult(
        cell,
        problem.evaluate(problem.profile.reference_plan),
        tuple(problem.evaluate_all(_plans(problem, record["plans"]))),
        policy,
        record["seconds"],
        record["cpu_seconds"],
    )


def _rows(problem: Evaluator, plans: Iterable[PrecisionPlan]) -> list[list[int]]:
    rows: list[list[int]] = PlanArrays.of(problem.profile).indices(list(plans)).tolist()
    return rows


def _plans(problem: Evaluator, rows: Sequence[Sequence[int]]) -> list[PrecisionPlan]:
    layers = len(problem.profile.layers)
    return PlanArrays.of(problem.profile).plans(np.array(rows, np.intp).reshape(len(rows), layers))
