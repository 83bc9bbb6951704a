"""The tables and figures of the search comparison, from the results of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.gate import SearchGate
from envs.pooled_gate import PooledGate
from scripts.benchmarks import Row
from scripts.benchmarks.search_cells import CellResult
from scripts.benchmarks.search_methods import GATES, TOLERANCES_PP
from scripts.benchmarks.search_problems import is_table
from scripts.benchmarks.search_scores import (
    Generalised,
    Interval,
    generalisation,
    optimisation_regrets,
    policy_regrets,
)

COMPARED_GATES: Sequence[tuple[str, float, SearchGate]] = (
    *(("own counts", a, SearchGate(a)) for a in (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)),
    *(("pooled", a, PooledGate(fresh_alpha=a)) for a in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)),
)
"""What is judged, the level and the gate of each choice that is compared on held-out data."""


@dataclass(frozen=True, slots=True)
class Results:
    """The cells that have run, by what they were asked."""

    cells: tuple[CellResult, ...]

    def of(self, problem: str, method: str, budget: int, gate: str = "raw") -> list[CellResult]:
        """The seeds of one setting that searched with ``gate``, in order; empty if it did not run."""
        found = [
            r
            for r in self.cells
            if (r.cell.problem, r.cell.method, r.cell.budget, r.cell.gate) == (problem, method, budget, gate)
        ]
        return sorted(found, key=lambda r: r.cell.seed)

    def settings(self) -> list[tuple[str, str, int]]:
        """Every (problem, method, budget) that ran."""
        keys = [(r.cell.problem, r.cell.method, r.cell.budget) for r in self.cells]
        return list(dict.fromkeys(keys))

    def regret(self, problem: str, method: str, budget: int) -> Interval | None:
        """Mean optimisation regret over the tolerances; None if it did not run."""
        seeds = self.of(problem, method, budget)
        return Interval.of_means([optimisation_regrets(r) for r in seeds]) if seeds else None


def optimisation_rows(results: Results) -> list[Row]:
    """One row a setting: optimisation regret with its interval, and what it cost."""
    rows: list[Row] = []
    for problem, method, budget in results.settings():
        seeds = results.of(problem, method, budget)
        regrets = [optimisation_regrets(r) for r in seeds]
        rows.append(
            {
                "table": "optimisation regret (raw gate)",
                "problem": problem,
                "budget": budget,
                "method": method,
                **percent(Interval.of_means(regrets)),
                "evaluations": statistics.fmean(len(r.outcomes) for r in seeds),
                "seconds": statistics.fmean(r.seconds for r in seeds),
                "cpu_seconds": statistics.fmean(r.cpu_seconds for r in seeds),
                **by_tolerance(regrets, "at "),
            }
        )
    return rows


def policy_rows(results: Results) -> list[Row]:
    """The greedy policy alone, without any archive."""
    rows: list[Row] = []
    for problem, method, budget in results.settings():
        regrets = [policy_regrets(r) for r in results.of(problem, method, budget) if r.policy]
        if regrets:
            rows.append(
                {
                    "table": "the policy alone, greedy (raw gate)",
                    "problem": problem,
                    "budget": budget,
                    **percent(Interval.of_means(regrets)),
                    **by_tolerance(regrets, "at "),
                }
            )
    return rows


def difference_rows(results: Results, problems: Sequence[str], budget: int) -> list[Row]:
    """PPO's optimisation regret minus each baseline's, paired by seed."""
    rows: list[Row] = []
    for problem in problems:
        ppo = {r.cell.seed: _mean_regret(r) for r in results.of(problem, "ppo", budget)}
        for _, method, _ in [s for s in results.settings() if s[0] == problem and s[2] == budget]:
            others = [r for r in results.of(problem, method, budget) if r.cell.seed in ppo]
            if method != "ppo" and others:
                differences = [ppo[r.cell.seed] - _mean_regret(r) for r in others]
                rows.append(
                    {
                        "table": "PPO's regret minus a baseline's, paired by seed",
                        "problem": problem,
                        "budget": budget,
                        "method": method,
                        **percent(Interval.of(differences)),
                    }
                )
    return rows


def generalisation_rows(results: Results) -> list[Row]:
    """One row a setting on the tables: what either gate's choice is worth on held-out data."""
    rows: list[Row] = []
    for problem, method, budget in results.settings():
        if not is_table(problem):
            continue
        row: Row = {
            "table": "generalisation (held-out data)",
            "problem": problem,
            "budget": budget,
            "method": method,
        }
        for name, make in GATES.items():
            seeds = searched_with(results, problem, method, budget, name)
            if seeds:
                found = [generalisation(r, make()) for r in seeds]
                interval = Interval.of_means([[g.regret for g in each] for each in found])
                row |= {f"{name}_{key}": value for key, value in percent(interval).items()}
                row[f"{name}_leak_%"] = 100.0 * leak_rate([g for each in found for g in each])
        rows.append(row)
    return rows


def gate_rows(results: Results) -> list[Row]:
    """One row a gate: leak rate and generalisation regret of choosing with it.

    The archives are those of the searches with the raw gate, whose plans crowd at the tolerances: the hardest
    to choose from.
    """
    rows: list[Row] = []
    problems = [p for p in dict.fromkeys(s[0] for s in results.settings()) if is_table(p)]
    for judged, level, gate in COMPARED_GATES:
        row: Row = {
            "table": "gates (all methods, budgets and seeds)",
            "judged by": judged,
            "alpha": level,
        }
        for label, chosen in (("", problems), *((f"{p}_", [p]) for p in problems)):
            runs = [r for r in results.cells if r.cell.problem in chosen and r.cell.gate == "raw"]
            found = [g for r in runs for g in generalisation(r, gate)]
            if found:
                row[f"{label}leak_%"] = 100.0 * leak_rate(found)
                row[f"{label}regret_%"] = 100.0 * statistics.fmean(g.regret for g in found)
                row[f"{label}reference_%"] = 100.0 * statistics.fmean(not g.chosen for g in found)
        if problems:
            rows.append(row)
    return rows


def searched_with(results: Results, problem: str, method: str, budget: int, gate: str) -> list[CellResult]:
    """The seeds that searched with ``gate``; for methods that do not look at it, those with the raw gate."""
    return results.of(problem, method, budget, gate) or results.of(problem, method, budget)


def leak_rate(found: Sequence[Generalised]) -> float:
    """Share of the chosen plans that leak; the reference is not a choice."""
    chosen = [g for g in found if g.chosen]
    return statistics.fmean(g.leaked for g in chosen) if chosen else 0.0


def percent(interval: Interval) -> Row:
    """The columns of an interval of shares."""
    values = {"regret_%": interval.mean, "low_%": interval.low, "high_%": interval.high}
    return {name: None if value is None else 100.0 * value for name, value in values.items()}


def by_tolerance(regrets: Sequence[Sequence[float]], prefix: str = "") -> Row:
    """The mean over seeds at each tolerance, in percent."""
    means = np.mean(regrets, axis=0)
    return {f"{prefix}{t:g} pp": 100.0 * float(m) for t, m in zip(TOLERANCES_PP, means, strict=True)}


def _mean_regret(result: CellResult) -> float:
    return statistics.fmean(optimisation_regrets(result))
