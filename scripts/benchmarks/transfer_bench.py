"""A policy trained on one network proposes plans for another: at once, and after a few evaluations there.

Observations are relative to the layer and the network, so one policy can read both. *Zero-shot*: the greedy
policy's plans for a network that it has never seen a plan of. *Few-shot*: a search on that network with an
empty archive, whose agent starts with the trained networks' weights in place of random ones. Only the weights
carry over. Adam's moments, the entropy bonus, the count of timesteps and the learning curve belong to the
old network; with that count the search, which trains in step with its budget, would not train before half of
the budget was spent.

Regrets are *optimisation* regrets (see `search_scores`), mean over the tolerances, with the raw gate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_contrib import MaskablePPO

from agents.additive import AdditiveModel
from agents.archive import Archive, ArchivingEvaluator
from agents.ppo import PPOAgent, draw_plans
from agents.ppo_search import PPOSearch
from agents.search_method import SearchMethod, SearchTask
from agents.stopping import BudgetSpent
from agents.surrogate.plan_arrays import PlanArrays
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from envs.evaluators.evaluator import Evaluator, Outcome
from pipeline.preparation import use_threads
from scripts.benchmarks import Benchmark
from scripts.benchmarks.search_cells import CellResult, SearchCell
from scripts.benchmarks.search_methods import METHODS, RAW, TOLERANCES_PP, shipped_ppo
from scripts.benchmarks.search_problems import open_problem
from scripts.benchmarks.search_scores import optimisation_regrets, policy_regrets
from scripts.benchmarks.transfer_tables import (
    ADDITIVE,
    ILP,
    OWN,
    SCRATCH,
    TRANSFERRED,
    ZERO_SHOT,
    Finding,
    difference_rows,
    figures,
    regret_rows,
)
from wattbit.energy.time_power import cpu_name
from wattbit.errors import ConfigError
from wattbit.features import FeatureEncoder

NETWORKS = ("fashion_resnet8", "fashion_transformer")
"""Tables of the same precisions: what is observed has the same meaning in all of them."""
SOURCE_BUDGET = 200
BUDGETS = (20, 40)

Maker = Callable[[Path | None], PPOSearch]
"""Makes a method whose agent keeps its checkpoint in a file, or nowhere."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much is run."""
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="processes (2)")


def run(options: argparse.Namespace) -> Benchmark:
    """Train on each network, and judge what it is worth on the others.

    Raises:
        ConfigError: If a number is not at least 1.
    """
    for name in ("seeds", "workers"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}, must be at least 1")
    units = [(network, seed) for seed in range(options.seeds) for network in NETWORKS]
    found = [finding for unit in _run_all(units, options.workers) for finding in unit]
    found += [
        judge(run_search(METHODS["ilp"](RAW), SearchCell(network, "ilp", budget, 0, "raw")), None, ILP)
        for network in NETWORKS
        for budget in BUDGETS
    ]
    rows = [*regret_rows(found), *difference_rows(found)]
    return Benchmark("transfer", f"cpu: {cpu_name()}", figures(found), tuple(rows))


def shipped_method(checkpoint: Path | None) -> PPOSearch:
    """The method of ``conf/agent/ppo.yaml``, on the raw gate."""
    return shipped_ppo(RAW, checkpoint)


def transfer(network: str, others: Sequence[str], seed: int, make_method: Maker) -> list[Finding]:
    """Train on ``network`` and propose and search on ``others``; search on ``network`` from scratch, too."""
    method = make_method(None)
    trained = run_search(method, SearchCell(network, "ppo", SOURCE_BUDGET, seed, "raw"))
    found = [judge(trained, network, OWN)]
    for budget in BUDGETS:
        scratch = run_search(make_method(None), SearchCell(network, "ppo", budget, seed, "raw"))
        found.append(judge(scratch, None, SCRATCH))
    for other in others:
        found.append(_zero_shot(method.ppo, network, SearchCell(other, "ppo", 0, seed, "raw")))
        found.append(_additive(trained, SearchCell(other, "ilp", 0, seed, "raw")))
        for budget in BUDGETS:
            with TemporaryDirectory() as folder:
                going_on = make_method(Path(folder) / "agent.zip")
                result = run_search(
                    going_on, SearchCell(other, "ppo", budget, seed, "raw"), method.ppo.opened
                )
            found.append(judge(result, network, TRANSFERRED))
    return found


def run_search(method: SearchMethod, cell: SearchCell, start: MaskablePPO | None = None) -> CellResult:
    """One search from an empty archive.

    Args:
        method: The method.
        cell: What to run; only problem, budget and seed count.
        start: What an agent with a checkpoint starts with, see `carry_over`.
    """
    problem = open_problem(cell.problem, cell.seed)
    reference = problem.evaluate(problem.profile.reference_plan)
    archive = Archive(reference, RAW)
    evaluator = ArchivingEvaluator(problem, cell.method, (archive,), cell.budget)
    task = SearchTask(evaluator, archive, TOLERANCES_PP, cell.budget, cell.seed)
    if start is not None and isinstance(method, PPOSearch):
        carry_over(start, method.ppo, task)
    with suppress(BudgetSpent):
        method.search(task)
    policy = greedy_plans(method.ppo, problem) if isinstance(method, PPOSearch) else {}
    return CellResult(cell, reference, tuple(archive), policy)


def carry_over(start: MaskablePPO, agent: PPOAgent, task: SearchTask) -> None:
    """Write ``agent``'s checkpoint so that its search begins with the weights of ``start``, all else new."""
    model = agent.open(task, SurrogateEvaluator(task.evaluator.profile))
    model.policy.load_state_dict(start.policy.state_dict())
    agent.save()


def greedy_plans(agent: PPOAgent, problem: Evaluator) -> dict[float, Outcome]:
    """What the policy proposes at its most probable choices for each tolerance (pp)."""
    encoder = FeatureEncoder(problem.profile, agent.pp_per_nat)
    drawn = draw_plans(agent.opened, encoder, TOLERANCES_PP, greedy=True)
    plans = PlanArrays.of(problem.profile).plans(drawn)
    return dict(zip(TOLERANCES_PP, problem.evaluate_all(plans), strict=True))


# --- judging ------------------------------------------------------------------------------------------------


def _zero_shot(agent: PPOAgent, trained_on: str, cell: SearchCell) -> Finding:
    problem = open_problem(cell.problem, cell.seed)
    reference = problem.evaluate(problem.profile.reference_plan)
    return judge(CellResult(cell, reference, (), greedy_plans(agent, problem)), trained_on, ZERO_SHOT)


def _additive(trained: CellResult, cell: SearchCell) -> Finding:
    """What needs no policy: additive optima, where a nat costs as many points as on the other network."""
    problem = open_problem(cell.problem, cell.seed)
    pp_per_nat = observed_pp_per_nat(trained)
    model = AdditiveModel(problem.profile)
    policy = {t: problem.evaluate(model.solve(t / pp_per_nat)) for t in TOLERANCES_PP}
    reference = problem.evaluate(problem.profile.reference_plan)
    return judge(CellResult(cell, reference, (), policy), trained.cell.problem, ADDITIVE)


def observed_pp_per_nat(result: CellResult) -> float:
    """Percentage points of drop a nat has cost, median over plans with a drop of 0.2 to 20 pp; 10 without."""
    profile = open_problem(result.cell.problem, result.cell.seed).profile
    ratios = [
        outcome.drop_pp / nats
        for outcome in result.outcomes
        if 0.2 <= outcome.drop_pp <= 20.0 and (nats := profile.plan_sensitivity(outcome.plan)) > 0.0
    ]
    return statistics.median(ratios) if ratios else 10.0


def judge(result: CellResult, trained_on: str | None, what: str) -> Finding:
    """The finding of a result; one that evaluated nothing is judged by its proposals."""
    cell, reference = result.cell, result.reference.plan
    proposed = policy_regrets(result)
    breaks = [o.plan != reference and not RAW.passes(o.counts, t) for t, o in result.policy.items()]
    return Finding(
        trained_on=trained_on,
        network=cell.problem,
        what=what,
        evaluations=cell.budget,
        seed=cell.seed,
        regrets=optimisation_regrets(result) if cell.budget else proposed,
        proposed=proposed,
        breaks=breaks,
    )


# --- processes ----------------------------------------------------------------------------------------------


def _run_all(units: Sequence[tuple[str, int]], workers: int) -> Iterator[list[Finding]]:
    """`transfer` from each (network, seed) to all other networks; a line on stderr tells of each finished."""
    if workers == 1:
        for network, seed in units:
            yield transfer(network, _others(network), seed, shipped_method)
        return
    # Forking a process that runs threads may hang; a new one imports what it needs.
    with ProcessPoolExecutor(workers, get_context("spawn"), use_threads, (1,)) as pool:
        futures = {
            pool.submit(transfer, network, _others(network), seed, shipped_method): f"{network}, seed {seed}"
            for network, seed in units
        }
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done}/{len(units)} {futures[future]}", file=sys.stderr, flush=True)
            yield future.result()


def _others(network: str) -> list[str]:
    return [name for name in NETWORKS if name != network]
