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
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_contrib import MaskablePPO

from agents.additive import AdditiveModel
from agents.ppo import PPOAgent
from agents.ppo_search import PPOSearch
from agents.search_comparison import observed_pp_per_nat
from agents.search_method import SearchTask
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from envs.evaluators.evaluator import Evaluator, Outcome
from scripts.benchmarks import Benchmark
from scripts.benchmarks.search_cells import CellResult, SearchCell, greedy_plans, run_cell, run_search
from scripts.benchmarks.search_methods import RAW, TOLERANCES_PP, shipped_ppo
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
from scripts.benchmarks.worker_pool import run_all
from wattbit.energy.time_power import cpu_name
from wattbit.errors import ConfigError

NETWORKS = ("fashion_resnet8", "fashion_transformer")
"""Tables of the same precisions: what is observed has the same meaning in all of them."""
SOURCE_BUDGET = 200
BUDGETS = (20, 40)

Maker = Callable[[Path | None], PPOSearch]
"""Makes a method whose agent keeps its checkpoint in a file, or nowhere."""
shipped_method: Maker = partial(shipped_ppo, RAW)


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
    units = [
        (network, [other for other in NETWORKS if other != network], seed, shipped_method)
        for seed in range(options.seeds)
        for network in NETWORKS
    ]
    found: list[Finding] = []
    for done, ((network, _, seed, _), part) in enumerate(run_all(_transfer, units, options.workers), 1):
        print(f"{done}/{len(units)} {network}, seed {seed}", file=sys.stderr, flush=True)
        found += part
    found += [
        judge(run_cell(SearchCell(network, "ilp", budget, 0, "raw")), None, ILP)
        for network in NETWORKS
        for budget in BUDGETS
    ]
    rows = [*regret_rows(found), *difference_rows(found)]
    return Benchmark("transfer", f"cpu: {cpu_name()}", figures(found), tuple(rows))


def transfer(network: str, others: Sequence[str], seed: int, make_method: Maker) -> list[Finding]:
    """Train on ``network`` and propose and search on ``others``; search on ``network`` from scratch, too."""

    def cell(problem: str, budget: int, method: str = "ppo") -> SearchCell:
        return SearchCell(problem, method, budget, seed, "raw")

    source = make_method(None)
    trained = run_search(source, cell(network, SOURCE_BUDGET))
    found = [judge(trained, network, OWN)]
    scratch = [run_search(make_method(None), cell(network, budget)) for budget in BUDGETS]
    found += [judge(result, None, SCRATCH) for result in scratch]
    pp_per_nat = observed_pp_per_nat(open_problem(network, seed).profile, trained.outcomes)
    for other in others:
        zero_shot = _proposed(cell(other, 0), partial(greedy_plans, source.ppo))
        additive = _proposed(cell(other, 0, "ilp"), partial(_additive_plans, pp_per_nat))
        found += [judge(zero_shot, network, ZERO_SHOT), judge(additive, network, ADDITIVE)]
        for budget in BUDGETS:
            with TemporaryDirectory() as folder:
                method = make_method(Path(folder) / "agent.zip")
                start = partial(carry_over, source.ppo.opened, method.ppo)
                found.append(judge(run_search(method, cell(other, budget), start), network, TRANSFERRED))
    return found


def _transfer(unit: tuple[str, Sequence[str], int, Maker]) -> list[Finding]:
    return transfer(*unit)


def carry_over(start: MaskablePPO, agent: PPOAgent, task: SearchTask) -> None:
    """Write ``agent``'s checkpoint so that its search begins with the weights of ``start``, all else new."""
    model = agent.open(task, SurrogateEvaluator(task.evaluator.profile))
    model.policy.load_state_dict(start.policy.state_dict())
    agent.save()


def _proposed(cell: SearchCell, propose: Callable[[Evaluator], dict[float, Outcome]]) -> CellResult:
    """What is proposed at each tolerance (pp) for a network without evaluating any of its plans."""
    problem = open_problem(cell.problem, cell.seed)
    return CellResult(cell, problem.evaluate(problem.profile.reference_plan), (), propose(problem))


def _additive_plans(pp_per_nat: float, problem: Evaluator) -> dict[float, Outcome]:
    """What needs no policy: additive optima, where a nat costs as many points as on the other network."""
    model = AdditiveModel(problem.profile)
    return {t: problem.evaluate(model.solve(t / pp_per_nat)) for t in TOLERANCES_PP}


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
