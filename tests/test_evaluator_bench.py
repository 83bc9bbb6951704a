"""The evaluator benchmark counts what it says, and its plans come from the policy."""

from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from sb3_contrib import MaskablePPO
from synthetic import FormulaEvaluator, make_profile
from torch import Tensor

from envs.layer_precision import LayerPrecisionEnv
from envs.plan_vec_env import PlanVecEnv
from scripts.benchmarks import evaluator_bench as bench
from wattbit.execution.prefix_sharing import PrefixSharing
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan


def test_shared_and_plain_runs_are_counted_and_compared(
    switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    reference = switchable.reference_plan
    *_, last = switchable.layer_names
    plans = [reference, reference.replace(**{last: "int8"}), reference, reference]
    found = bench.compare(switchable, [conv_inputs[:32], conv_inputs[32:]], plans)
    assert (found.plans, found.distinct) == (4, 2)
    assert found.plain_executions == 2 * 4 * 4
    assert found.plain_distinct_executions == 2 * 2 * 4
    assert found.shared_executions == 2 * (4 + 1)
    assert found.max_abs_difference == 0.0
    assert min(found.plain_s, found.plain_distinct_s, found.shared_s) > 0.0
    every, distinct = bench.table_rows("tiny", found)
    assert every["plans"] == 4
    assert every["executions_ratio"] == pytest.approx(3.2)
    assert distinct["plans"] == 2
    assert distinct["executions_ratio"] == pytest.approx(1.6)


def test_a_difference_in_any_output_shows(
    switchable: SwitchableModel, conv_inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [PrecisionPlan.uniform(switchable.layer_names, name) for name in ("int8", "int4")]
    logits = PrefixSharing.logits

    def wrong(
        sharing: PrefixSharing, inputs: Sequence[Tensor], asked: list[PrecisionPlan]
    ) -> Iterator[tuple[PrecisionPlan, Tensor]]:
        for plan, found in logits(sharing, inputs, asked):
            yield plan, found + (0.25 if plan == plans[1] else 0.0)

    monkeypatch.setattr(PrefixSharing, "logits", wrong)
    assert bench.compare(switchable, [conv_inputs], plans).max_abs_difference == pytest.approx(0.25)


def test_a_rollout_draws_plans_that_the_model_supports_and_the_same_with_the_same_seed() -> None:
    profile = make_profile(5, missing={1: ("int2", "bf16")})
    env = PlanVecEnv([partial(LayerPrecisionEnv, FormulaEvaluator(profile))])
    agent = MaskablePPO("MlpPolicy", env, n_steps=5, batch_size=5, seed=0, device="cpu")
    plans = bench.rollout(agent, env.envs[0], 40, 3)
    assert len(plans) == 40
    assert all(profile.require_plan(plan) == plan for plan in plans)
    assert plans == bench.rollout(agent, env.envs[0], 40, 3)
    assert plans != bench.rollout(agent, env.envs[0], 40, 4)


def test_the_figures_are_those_of_the_first_workload_and_the_worst_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {
        "digits": bench.Sharing(256, 128, 800, 400, 100, 8.0, 4.0, 2.0, 0.0),
        "fashion_mnist": bench.Sharing(256, 256, 100, 100, 100, 1.0, 1.0, 1.0, 0.5),
    }
    monkeypatch.setattr(bench, "load_workload", lambda name: name)
    monkeypatch.setattr(bench, "measure_sharing", lambda workload, config: found[workload])
    result = bench.run()
    assert result.figures == {
        "layer_executions_ratio": 8.0,
        "time_ratio": 4.0,
        "max_abs_difference": 0.5,
        "layer_executions_ratio_distinct": 4.0,
        "time_ratio_distinct": 2.0,
    }
    assert [row["workload"] for row in result.rows] == ["digits", "digits", "fashion_mnist", "fashion_mnist"]
