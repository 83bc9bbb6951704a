"""How much work the plans of one rollout of the warm-started policy share: run shared, and run plainly.

The rollout is what PPO begins with: 256 plans drawn from the policy right after it has learned from the
baselines' plans, at tolerances drawn as in training. Plain is one full pass for each plan. An evaluator that
remembers plans runs repeated ones once anyway, so the ratio over the distinct plans alone stands beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from torch import Tensor

from agents.archive import Journal
from agents.baselines import ILP, Greedy, Random, Uniform
from agents.ppo import draw_plans
from agents.search_comparison import SearchComparison
from agents.search_method import SearchMethod, SearchTask
from agents.stopping import StopRule
from agents.surrogate.plan_arrays import PlanArrays
from envs.evaluators.plan_evaluator import PlanEvaluator
from envs.layer_precision import LayerPrecisionEnv
from pipeline.preparation import build_model, profile_model, use_threads
from pipeline.settings import compose_training
from pipeline.training_settings import TrainingSettings
from scripts.benchmarks import Benchmark, Row
from scripts.benchmarks.kernel_models import load_workload
from wattbit.energy.time_power import cpu_name
from wattbit.execution.prefix_sharing import PrefixSharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs
from wattbit.plan import PrecisionPlan
from workloads.padding import split_batches
from workloads.workload import Workload

PLANS = 256
WORKLOADS = ("digits", "fashion_mnist")
SEED = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Plans run plainly and shared on the same batches.

    Attributes:
        plans: Number of plans.
        distinct: Number of different ones among them.
        plain_executions: Layers run by one full pass for each plan.
        plain_distinct_executions: Layers run by one full pass for each distinct plan.
        shared_executions: Layers run when they share.
        plain_s: Time of the passes of all plans, seconds.
        plain_distinct_s: Time of those of the distinct plans.
        shared_s: Time of the shared run.
        max_abs_difference: The largest difference between the two outputs of the same plan.
    """

    plans: int
    distinct: int
    plain_executions: int
    plain_distinct_executions: int
    shared_executions: int
    plain_s: float
    plain_distinct_s: float
    shared_s: float
    max_abs_difference: float


def run() -> Benchmark:
    """Measure every workload that is on this machine; the figures are the first one's."""
    use_threads(1)
    rows: list[Row] = []
    measured: list[Sharing] = []
    for name in WORKLOADS:
        workload = load_workload(name)
        if workload is not None:
            settings = compose_training([f"workload={name}", "energy=modelled"])
            sharing = measure_sharing(workload, settings)
            measured.append(sharing)
            rows += table_rows(name, sharing)
    first = measured[0]
    figures = {
        "layer_executions_ratio": first.plain_executions / first.shared_executions,
        "time_ratio": first.plain_s / first.shared_s,
        "max_abs_difference": max(sharing.max_abs_difference for sharing in measured),
        "layer_executions_ratio_distinct": first.plain_distinct_executions / first.shared_executions,
        "time_ratio_distinct": first.plain_distinct_s / first.shared_s,
    }
    return Benchmark("evaluator", f"cpu: {cpu_name()}", figures, tuple(rows))


def compare(model: SwitchableModel, inputs: Sequence[Inputs], plans: Sequence[PrecisionPlan]) -> Sharing:
    """Run ``plans`` on the batches ``inputs``, plainly and shared."""
    distinct = list(dict.fromkeys(plans))
    sharing = PrefixSharing(model, inputs[0])
    for plan in distinct:  # packed before, once for both
        model.prepare(plan)
    start = time.perf_counter()
    shared = dict(sharing.logits(inputs, distinct))
    shared_s = time.perf_counter() - start
    seconds: dict[PrecisionPlan, float] = {}
    plain_s = difference = 0.0
    for plan in plans:
        start = time.perf_counter()
        logits = model.logits(inputs, plan)
        seconds[plan] = time.perf_counter() - start
        plain_s += seconds[plan]
        difference = max(difference, _difference(logits, shared[plan]))
    once = sharing.plain_layer_executions
    return Sharing(
        plans=len(plans),
        distinct=len(distinct),
        plain_executions=once // len(distinct) * len(plans),
        plain_distinct_executions=once,
        shared_executions=sharing.layer_executions,
        plain_s=plain_s,
        plain_distinct_s=sum(seconds.values()),
        shared_s=shared_s,
        max_abs_difference=difference,
    )


def table_rows(workload: str, sharing: Sharing) -> list[Row]:
    """One row for all plans, one for the distinct ones."""
    return [
        {
            "table": "rollout",
            "workload": workload,
            "what": what,
            "plans": plans,
            "plain_executions": executions,
            "shared_executions": sharing.shared_executions,
            "executions_ratio": executions / sharing.shared_executions,
            "plain_s": plain_s,
            "shared_s": sharing.shared_s,
            "time_ratio": plain_s / sharing.shared_s,
            "max_abs_difference": sharing.max_abs_difference,
        }
        for what, plans, executions, plain_s in (
            ("every plan", sharing.plans, sharing.plain_executions, sharing.plain_s),
            (
                "distinct plans",
                sharing.distinct,
                sharing.plain_distinct_executions,
                sharing.plain_distinct_s,
            ),
        )
    ]


def rollout(agent: MaskablePPO, env: LayerPrecisionEnv, plans: int, seed: int) -> list[PrecisionPlan]:
    """Plans drawn from the policy, at tolerances drawn log-uniformly from the environment's range."""
    rng = np.random.default_rng(seed)
    agent.set_random_seed(seed)
    low_pp, high_pp = env.tolerance_range_pp
    tolerances_pp = np.exp(rng.uniform(math.log(low_pp), math.log(high_pp), plans))
    drawn = draw_plans(agent, env.encoder, tolerances_pp.tolist())
    return PlanArrays.of(env.encoder.profile).plans(drawn)


def _difference(a: Tensor, b: Tensor) -> float:
    same = a.view(torch.int32) == b.view(torch.int32)
    # Only where the bits differ: infinity minus itself is not a number.
    return float((a - b).abs().nan_to_num(nan=math.inf)[~same].max()) if not bool(same.all()) else 0.0


def measure_sharing(workload: Workload, settings: TrainingSettings) -> Sharing:
    """Run the plans of a rollout on ``workload``, plainly and shared."""
    with build_model(workload, settings.precisions) as model:
        profile, _ = profile_model(model, workload, settings.energy.costs)
        parts, labels = split_batches(workload, "search")
        evaluator = PlanEvaluator(model, profile, parts, labels)
        with TemporaryDirectory() as folder, Journal(Path(folder) / "archive.jsonl") as journal:
            agent, env = _warm_started(evaluator, settings, journal)
        return compare(model, parts, rollout(agent, env, PLANS, SEED))


def _warm_started(
    evaluator: PlanEvaluator, settings: TrainingSettings, journal: Journal
) -> tuple[MaskablePPO, LayerPrecisionEnv]:
    """The agent of train.py as it is before its first rollout, and its environment."""
    comparison = SearchComparison(
        evaluator=evaluator,
        reference=evaluator.evaluate(evaluator.profile.reference_plan),
        gate=settings.gate,
        tolerances_pp=tuple(settings.tolerances_pp),
        stop=StopRule(),
        journal=journal,
        listener=lambda *report: None,
    )
    baselines: list[SearchMethod] = [Uniform(), Greedy(), ILP(), Random()]
    for method in baselines:
        comparison.run(method, settings.baseline_budget, SEED)
    make_env = partial(settings.env, pp_per_nat=comparison.pp_per_nat())
    agent = settings.ppo_search(make_env=make_env).ppo
    task = SearchTask(evaluator, comparison.archive, comparison.tolerances_pp, 1, SEED)
    return agent.open(task, evaluator), make_env(evaluator)
