"""The baselines PPO must beat: uniform, random, greedy and the additive optimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from agents.additive import AdditiveModel
from agents.search_method import SearchTask, spread
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

# Plans evaluated together: they may share work, and progress is still seen.
_TOGETHER = 32


class Uniform:
    """The same precision for every layer, each precision that every layer supports in turn."""

    name = "uniform"

    def search(self, task: SearchTask) -> None:
        """Evaluate every uniform plan."""
        plans = list(uniform_plans(task.evaluator.profile).values())
        _evaluate(task, plans[: task.budget], len(plans))


class Random:
    """Plans drawn layer by layer, uniformly among the precisions each layer supports."""

    name = "random"

    def search(self, task: SearchTask) -> None:
        """Evaluate random plans until the budget is spent, or nothing new turns up."""
        profile = task.evaluator.profile
        rng = np.random.default_rng(task.seed)
        supported = [profile.supported(layer) for layer in range(len(profile.layers))]
        draws = 20 * task.budget
        # Never more at once than the budget has left, if all were new.
        while (count := min(_TOGETHER, draws, task.budget - task.evaluator.evaluations)) > 0:
            drawn = [[str(rng.choice(choices)) for choices in supported] for _ in range(count)]
            task.evaluator.evaluate_all(
                [PrecisionPlan(dict(zip(profile.layer_names, names, strict=True))) for names in drawn]
            )
            draws -= count
            task.report(task.evaluator.evaluations, task.budget, "")


class Greedy:
    """From the reference, take step by step the change that saves most energy per added sensitivity.

    The path does not depend on the tolerance; it is evaluated at evenly spread points.
    """

    name = "greedy"

    def search(self, task: SearchTask) -> None:
        """Evaluate the greedy path."""
        path = greedy_path(task.evaluator.profile)
        chosen = spread(path, task.budget)
        _evaluate(task, [path[index] for index in chosen], len(chosen))


class ILP:
    """The additive optimum for a range of sensitivity budgets (HiGHS through ``scipy.optimize.milp``)."""

    name = "ilp"

    def search(self, task: SearchTask) -> None:
        """Evaluate the optimum of each of ``budget`` sensitivity budgets, equal plans once."""
        model = AdditiveModel(task.evaluator.profile)
        budgets = model.budgets(task.budget)
        _evaluate(task, (model.solve(float(nats)) for nats in budgets), len(budgets))


def _evaluate(task: SearchTask, plans: Iterable[PrecisionPlan], total: int) -> None:
    """Evaluate ``plans`` in their order, some at a time, and report each of them."""
    waiting = iter(plans)
    done = 0
    while together := list(islice(waiting, _TOGETHER)):
        task.evaluator.evaluate_all(together)
        for _ in together:
            done += 1
            task.report(done, total, "")


def uniform_plans(profile: ModelProfile) -> dict[str, PrecisionPlan]:
    """The uniform plan of each precision that every layer supports, by precision name."""
    return {
        name: PrecisionPlan.uniform(profile.layer_names, name)
        for name in profile.precisions
        if all(name in layer.costs for layer in profile.layers)
    }


def greedy_path(profile: ModelProfile) -> list[PrecisionPlan]:
    """The plans that greedy descent passes through, the reference left out.

    It ends where no change of a single layer saves energy.
    """
    names = [profile.reference] * len(profile.layers)
    # The best change of each layer; a change of one layer only alters its own and its neighbours'.
    steps = [_best_step(profile, names, index) for index in range(len(names))]
    path: list[PrecisionPlan] = []
    while True:
        index = max(range(len(names)), key=lambda i: steps[i][0])
        ratio, name = steps[index]
        if ratio <= 0.0:
            return path
        names[index] = name
        path.append(PrecisionPlan(dict(zip(profile.layer_names, names, strict=True))))
        for changed in range(max(0, index - 1), min(len(names), index + 2)):
            steps[changed] = _best_step(profile, names, changed)


def _best_step(profile: ModelProfile, names: Sequence[str], index: int) -> tuple[float, str]:
    """The change of one layer that saves most energy per added nat, and how much; 0 if none saves any."""
    costs = profile.layers[index].costs
    now = names[index]
    previous = names[index - 1] if index else None
    following = names[index + 1] if index + 1 < len(names) else None

    def energy_j(name: str) -> float:
        own_j = profile.step_energy_j(index, name, previous)
        return own_j if following is None else own_j + profile.conversion_energy_j(index + 1, following, name)

    best = (0.0, now)
    now_j = energy_j(now)
    for name, cost in costs.items():
        saved_j = now_j - energy_j(name)
        # A saving within rounding is none: taking it back could look like one, too.
        if saved_j > 1e-12 * now_j:
            added = max(cost.sensitivity - costs[now].sensitivity, 1e-9)
            best = max(best, (saved_j / added, name), key=lambda step: step[0])
    return best
