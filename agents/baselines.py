"""The baselines PPO must beat: uniform, random, greedy and the additive optimum."""

from __future__ import annotations

import numpy as np

from agents.additive import AdditiveModel
from agents.search_method import SearchTask, spread
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile


class Uniform:
    """The same precision for every layer, each precision that every layer supports in turn."""

    name = "uniform"

    def search(self, task: SearchTask) -> None:
        """Evaluate every uniform plan."""
        plans = list(uniform_plans(task.evaluator.profile).values())
        for done, plan in enumerate(plans[: task.budget], 1):
            task.evaluator.evaluate(plan)
            task.report(done, len(plans), "")


class Random:
    """Plans drawn layer by layer, uniformly among the precisions each layer supports."""

    name = "random"

    def search(self, task: SearchTask) -> None:
        """Evaluate random plans until the budget is spent, or nothing new turns up."""
        profile = task.evaluator.profile
        rng = np.random.default_rng(task.seed)
        supported = [profile.supported(layer) for layer in range(len(profile.layers))]
        for _ in range(20 * task.budget):
            if task.evaluator.evaluations >= task.budget:
                break
            names = [str(rng.choice(choices)) for choices in supported]
            task.evaluator.evaluate(PrecisionPlan(dict(zip(profile.layer_names, names, strict=True))))
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
        for done, index in enumerate(chosen, 1):
            task.evaluator.evaluate(path[index])
            task.report(done, len(chosen), "")


class ILP:
    """The additive optimum for a range of sensitivity budgets (HiGHS through ``scipy.optimize.milp``)."""

    name = "ilp"

    def search(self, task: SearchTask) -> None:
        """Evaluate the optimum of each of ``budget`` sensitivity budgets, equal plans once."""
        model = AdditiveModel(task.evaluator.profile)
        budgets = model.budgets(task.budget)
        for done, nats in enumerate(budgets, 1):
            task.evaluator.evaluate(model.solve(float(nats)))
            task.report(done, len(budgets), "")


def uniform_plans(profile: ModelProfile) -> dict[str, PrecisionPlan]:
    """The uniform plan of each precision that every layer supports, by precision name."""
    return {
        name: PrecisionPlan.uniform(profile.layer_names, name)
        for name in profile.precisions
        if all(name in layer.costs for layer in profile.layers)
    }


def greedy_path(profile: ModelProfile) -> list[PrecisionPlan]:
    """The plans that greedy descent passes through, from the reference (left out) to the cheapest."""
    plan = profile.reference_plan
    path: list[PrecisionPlan] = []
    while True:
        step = _best_step(profile, plan)
        if step is None:
            return path
        plan = plan.replace(**{step[0]: step[1]})
        path.append(plan)


def _best_step(profile: ModelProfile, plan: PrecisionPlan) -> tuple[str, str] | None:
    energy_j = profile.plan_energy_j(plan)
    best: tuple[float, str, str] | None = None
    for layer in profile.layers:
        now = layer.costs[plan[layer.name]]
        for name, cost in layer.costs.items():
            saved_j = energy_j - profile.plan_energy_j(plan.replace(**{layer.name: name}))
            if saved_j <= 0.0:
                continue
            added = max(cost.sensitivity - now.sensitivity, 1e-9)
            if best is None or saved_j / added > best[0]:
                best = (saved_j / added, layer.name, name)
    return None if best is None else best[1:]
