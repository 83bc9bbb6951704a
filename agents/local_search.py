"""Local search: from additive optima to cheaper neighbours, as long as the plans that are run pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.initial_design import run_spread_design
from agents.search_method import SearchTask
from agents.surrogate.gp_covariance import FLOOR_NATS
from agents.surrogate.plan_arrays import Indices, PlanArrays

# Plans run at one tolerance before the next has its turn.
_TOGETHER = 4
# Largest number of swaps looked at around a plan.
_SWAPS = 4000
# Layers changed at random where all neighbours of a plan were run.
_KICKED = 3
_KICKS = 200
# A saving of energy by 1 % is worth 4 % more sensitivity: better than 0 %, and than any at the best ratio.
_NATS_FOR_ENERGY = 4.0


class LocalSearch:
    """Hill climbing on measured drops, one tolerance after another.

    The neighbours of an incumbent are the plans in which one layer changes, or one layer gets narrower and
    another wider. Those that cost less energy are run: by turns the least sensitive and the one that saves
    most for its sensitivity. Where all were run, the search goes on from the incumbent with some layers
    changed at random.
    """

    name = "local_search"

    def search(self, task: SearchTask) -> None:
        """Evaluate until the budget is spent, or nothing new turns up at any tolerance."""
        run_spread_design(task)
        arrays = PlanArrays.of(task.evaluator.profile)
        rng = np.random.default_rng(task.seed)
        turn, idle = 0, 0
        while idle < len(task.tolerances_pp):
            left = task.budget - task.evaluator.evaluations
            task.report(task.evaluator.evaluations, task.budget, "")
            if left <= 0:
                return
            incumbent = task.archive.best(task.tolerances_pp[turn % len(task.tolerances_pp)]).plan
            plans = _next(arrays, task, arrays.indices([incumbent])[0], rng)[: min(left, _TOGETHER)]
            task.evaluator.evaluate_all(arrays.plans(plans))
            idle = 0 if len(plans) else idle + 1
            turn += 1


def _next(arrays: PlanArrays, task: SearchTask, plan: Indices, rng: np.random.Generator) -> Indices:
    """New plans that are cheaper than ``plan`` (layers,), in the order to run them, (plans, layers)."""
    known = {row.tobytes() for row in arrays.indices([outcome.plan for outcome in task.archive])}
    energy_j = arrays.energies_j(plan[None])[0]
    for around in (_neighbours(arrays, plan, rng), _kicked(arrays, plan, rng)):
        new = np.array([row.tobytes() not in known for row in around], np.bool_)
        cheaper = around[new & (arrays.energies_j(around) < energy_j)]
        if len(cheaper):
            return np.asarray(cheaper[_order(arrays, cheaper)], np.intp)
    return plan[None][:0]


def _order(arrays: PlanArrays, plans: Indices) -> NDArray[np.intp]:
    """In which order to run ``plans``: cautious and bold ones by turns."""
    log_nats = np.log(arrays.sensitivities(plans).sum(axis=1) + FLOOR_NATS)
    cautious = np.argsort(log_nats, kind="stable")
    bold = np.argsort(log_nats + _NATS_FOR_ENERGY * np.log(arrays.energies_j(plans)), kind="stable")
    both = np.stack([cautious, bold], axis=1).ravel()
    return both[np.sort(np.unique(both, return_index=True)[1])]


def _neighbours(arrays: PlanArrays, plan: Indices, rng: np.random.Generator) -> Indices:
    """Every change of one layer, and pairs of a change that saves energy and one that costs some."""
    layers, choices = arrays.supported.nonzero()
    other = plan[layers] != choices
    layers, choices = layers[other], choices[other]
    single = np.repeat(plan[None], len(layers), axis=0)
    single[np.arange(len(layers)), layers] = choices
    saves = arrays.energies_j(single) < arrays.energies_j(plan[None])[0]
    down, up = np.flatnonzero(saves), np.flatnonzero(~saves)
    pairs = np.stack(np.meshgrid(down, up), axis=-1).reshape(-1, 2)
    pairs = pairs[layers[pairs[:, 0]] != layers[pairs[:, 1]]]
    if len(pairs) > _SWAPS:
        pairs = pairs[rng.choice(len(pairs), _SWAPS, replace=False)]
    swapped = single[pairs[:, 0]]
    swapped[np.arange(len(pairs)), layers[pairs[:, 1]]] = choices[pairs[:, 1]]
    return np.concatenate([single, swapped])


def _kicked(arrays: PlanArrays, plan: Indices, rng: np.random.Generator) -> Indices:
    """Different plans with a few layers changed at random, among those near ``plan``."""
    kicked = np.repeat(plan[None], _KICKS, axis=0)
    layers, choices = arrays.supported.nonzero()
    for _ in range(_KICKED):
        drawn = rng.integers(len(layers), size=_KICKS)
        kicked[np.arange(_KICKS), layers[drawn]] = choices[drawn]
    return np.unique(kicked, axis=0)
