"""Every search method at equal cost: how near the optimum it gets, and what its plans are worth on new data.

Each method starts from an empty archive and may evaluate as many distinct plans as the budget says, for all
tolerances together. See `search_scores` for the two regrets. Baselines run with their defaults, PPO with
``conf/agent/ppo.yaml``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.layer_precision import LayerPrecisionEnv
from envs.plan_table import table_names
from scripts.benchmarks import Benchmark, Row
from scripts.benchmarks.recorded_network import NETWORKS
from scripts.benchmarks.search_cells import CellResult, SearchCell, run_cells
from scripts.benchmarks.search_figures import draw_scaling, draw_search
from scripts.benchmarks.search_methods import GATE_BLIND, GATES, METHODS, baselines
from scripts.benchmarks.search_problems import SYNTHETIC, is_table, open_problem
from scripts.benchmarks.search_scores import Generalised, Interval, generalisation, policy_regrets
from scripts.benchmarks.search_tables import (
    Results,
    difference_rows,
    gate_rows,
    generalisation_rows,
    leak_rate,
    optimisation_rows,
    policy_rows,
    searched_with,
)
from wattbit.energy.time_power import cpu_name
from wattbit.errors import ConfigError

MAIN = "fashion_resnet8"
"""The table that figures without a problem in their name are about."""
DEEP = f"{SYNTHETIC}50"
SCALING = "scaling"
SCALING_LAYERS = (25, 50, 100, 200)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a part of the comparison."""
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="keep finished searches here, and reuse")
    parser.add_argument("--figures", metavar="FOLDER", type=Path, help="draw search.png and scaling.png here")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="processes (2)")
    parser.add_argument("--budgets", metavar="N,N", default="60,200", help="evaluations (60,200)")
    parser.add_argument("--seeds", metavar="N,N", default="0,1,2,3,4", help="seeds (0,1,2,3,4)")
    for name, choices, more in (("methods", list(METHODS), []), ("problems", _problems(), list(NETWORKS))):
        known = ", ".join([*choices, *(f"{extra} (takes hours)" for extra in more)])
        parser.add_argument(f"--{name}", metavar="A,B", default=",".join(choices), help=known)


def run(options: argparse.Namespace) -> Benchmark:
    """Run every cell asked for, or recall it.

    Raises:
        ConfigError: If a method or problem is unknown, or a number is not one.
        DataError: If a problem's data are not on this machine.
    """
    methods = _names(options.methods, list(METHODS), "method")
    problems = _names(options.problems, [*_problems(), *NETWORKS], "problem")
    budgets, seeds = _numbers(options.budgets, "budgets"), _numbers(options.seeds, "seeds")
    networks = [problem for problem in problems if problem != SCALING]
    cells = _cells(networks, methods, budgets, seeds)
    scaling = [
        SearchCell(f"{SYNTHETIC}{layers}", "ppo", max(budgets), seed, "raw")
        for layers in SCALING_LAYERS
        for seed in seeds[:1]
        if SCALING in problems and "ppo" in methods
    ]
    for problem in networks:
        open_problem(problem, seeds[0])  # what a first opening makes is made once, not by each worker
    found = run_cells(list(dict.fromkeys([*cells, *scaling])), options.cache, options.workers)
    results = Results(tuple(found[cell] for cell in cells))
    scaled = [found[cell] for cell in scaling]
    deep = [problem for problem in networks if not is_table(problem)]
    rows = [
        *optimisation_rows(results),
        *policy_rows(results),
        *difference_rows(results, networks, max(budgets)),
        *generalisation_rows(results),
        *gate_rows(results),
        *_scaling_rows(scaled),
    ]
    figures = {
        **_regret_figures(results, methods, budgets),
        **_difference_figures(results, deep, methods, max(budgets)),
        **_gate_figures(results),
        **({"scaling_exponent": scaling_exponent(scaled)} if len(scaled) > 1 else {}),
        **({"tabular_steps_per_s": steps_per_s(MAIN)} if MAIN in networks else {}),
    }
    if options.figures is not None:
        draw_search(results, networks, max(budgets), options.figures / "search.png")
        if len(scaled) > 1:
            draw_scaling(scaled, options.figures / "scaling.png")
    return Benchmark("search", f"cpu: {cpu_name()}", figures, tuple(rows))


def scaling_exponent(results: Sequence[CellResult]) -> float:
    """Slope of the logarithm of the search's processor time over that of the layers; 1 is linear."""
    layers = [len(result.reference.plan) for result in results]
    return float(np.polyfit(np.log(layers), np.log([result.cpu_seconds for result in results]), 1)[0])


def steps_per_s(problem: str, steps: int = 20_000) -> float:
    """Steps a second of one environment on a table, random plans of random tolerances."""
    env = LayerPrecisionEnv(open_problem(problem, 0))
    draws = np.random.default_rng(0).random(steps)
    env.reset(seed=0)
    started = time.perf_counter()
    for draw in draws:
        allowed = env.action_masks().nonzero()[0]
        *_, ended, _, _ = env.step(int(allowed[int(draw * len(allowed))]))
        if ended:
            env.reset()
    return steps / (time.perf_counter() - started)


def _cells(
    problems: Sequence[str],
    methods: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
) -> list[SearchCell]:
    """Searches with the raw gate; on tables also with the shipped one, where a method looks at it."""
    return [
        SearchCell(problem, method, budget, seed, gate)
        for gate in GATES
        for problem in problems
        for method in methods
        for budget in budgets
        for seed in seeds
        if gate == "raw" or (is_table(problem) and method not in GATE_BLIND)
    ]


def _regret_figures(results: Results, methods: Sequence[str], budgets: Sequence[int]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for problem in dict.fromkeys(setting[0] for setting in results.settings()):
        suffix = "" if problem == MAIN else f"_{problem}"
        for budget in budgets:
            regrets = {m: r.mean for m in methods if (r := results.regret(problem, m, budget))}
            figures |= {f"regret_{m}_{budget}{suffix}": mean for m, mean in regrets.items()}
            others = [regrets[m] for m in baselines(list(regrets))]
            if others:
                figures[f"regret_best_baseline_{budget}{suffix}"] = min(others)
        alone = [r for r in results.of(problem, "ppo", max(budgets)) if r.policy]
        if alone:
            mean = statistics.fmean(statistics.fmean(policy_regrets(r)) for r in alone)
            figures[f"regret_policy_only{suffix}"] = mean
    return figures


def _difference_figures(
    results: Results, problems: Sequence[str], methods: Sequence[str], budget: int
) -> dict[str, float]:
    """PPO minus the baseline whose mean is best, paired by seed, with its interval."""
    figures: dict[str, float] = {}
    for problem in problems:
        regrets = {m: r.mean for m in baselines(methods) if (r := results.regret(problem, m, budget))}
        if not regrets or not results.of(problem, "ppo", budget):
            continue
        best = min(regrets, key=lambda name: regrets[name])
        [row] = [r for r in difference_rows(results, [problem], budget) if r["method"] == best]
        name = f"ppo_minus_best_baseline_{budget}_{problem}"
        for end, key in (("", "regret_%"), ("_low", "low_%"), ("_high", "high_%")):
            value = row.get(key)
            if isinstance(value, float):
                figures[f"{name}{end}"] = value / 100.0
    return figures


def _gate_figures(results: Results) -> dict[str, float]:
    """Leak rate and generalisation regret over all tables, methods, budgets and seeds, for either gate."""
    figures = {}
    for name, suffix in (("shipped", ""), ("raw", "_raw")):
        found: list[Generalised] = []
        for problem, method, budget in results.settings():
            if is_table(problem):
                seeds = searched_with(results, problem, method, budget, name)
                found += [g for r in seeds for g in generalisation(r, GATES[name]())]
        if found:
            figures[f"leak_rate{suffix}"] = leak_rate(found)
            figures[f"regret_generalisation{suffix}"] = Interval.of([g.regret for g in found]).mean
    return figures


def _scaling_rows(results: Sequence[CellResult]) -> list[Row]:
    return [
        {
            "table": "search time of PPO by layers",
            "layers": len(r.reference.plan),
            "evaluations": len(r.outcomes),
            "seconds": r.seconds,
            "cpu_seconds": r.cpu_seconds,
            "cpu_ms_per_layer_and_evaluation": 1e3
            * r.cpu_seconds
            / (len(r.reference.plan) * max(1, len(r.outcomes))),
        }
        for r in results
    ]


def _problems() -> list[str]:
    return [*table_names(), DEEP, SCALING]


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        synthetic = what == "problem" and name.removeprefix(SYNTHETIC).isdecimal()
        if name not in known and not synthetic:
            raise ConfigError(f"no {what} {name!r:.80}; choose from {', '.join(known)}")
    if not names:
        raise ConfigError(f"no {what} is given; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def _numbers(text: str, what: str) -> list[int]:
    parts = text.split(",")
    least = 0 if what == "seeds" else 1
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ConfigError(f"--{what} is {text!r:.80}, must be whole numbers of at least {least}: 1,2,3")
    return list(dict.fromkeys(int(part) for part in parts))
