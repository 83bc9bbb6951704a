"""The benchmark: outcomes are those of the table, optima are optima, and a search sees no held-out data."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from made_table import HELD_OUT, ROWS, SEARCH, make_table, plans

from agents.archive import Archive, ArchivingEvaluator
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.tabular import TabularEvaluator
from wattbit.errors import ConfigError, DataError, GuardrailError, PlanError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table on disk."""
    path = tmp_path / "made.npz"
    path.write_bytes(make_table().to_bytes())
    return path


@settings(deadline=None, max_examples=60)
@given(row=st.integers(0, ROWS - 1), seed=st.integers(0, 3))
def test_an_outcome_is_what_the_table_says(row: int, seed: int) -> None:
    table = make_table(seed)
    evaluator = TabularEvaluator(table)
    plan = plans(table)[row]
    outcome = evaluator.evaluate(plan)
    assert outcome.plan == plan
    assert outcome.energy_j == table.profile.plan_energy_j(plan) == pytest.approx(table.energy_j[row])
    assert outcome.latency_ms == table.profile.plan_latency_ms(plan)
    assert outcome.divergence == table.search_divergence[row]
    assert outcome.counts == PairedCounts(
        SEARCH, int(table.search_reference_only[row]), int(table.search_plan_only[row])
    )
    assert evaluator.held_out_counts(plan) == PairedCounts(
        HELD_OUT, int(table.held_out_reference_only[row]), int(table.held_out_plan_only[row])
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 5),
    tolerance_pp=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 100.0]),
    alpha=st.sampled_from([None, 0.5, 0.2, 0.05]),
)
def test_the_optimum_is_the_best_of_an_archive_of_all_plans(
    seed: int, tolerance_pp: float, alpha: float | None
) -> None:
    table = make_table(seed)
    evaluator, judged = TabularEvaluator(table), TabularEvaluator(table)
    gate = SearchGate(alpha or 0.5)
    archive = Archive(evaluator.evaluate(table.profile.reference_plan), gate)
    for outcome in evaluator.evaluate_all(plans(table)):
        archive.add(outcome, "all")
    best = judged.optimum(tolerance_pp, None if alpha is None else gate)
    assert best == archive.best(tolerance_pp)
    assert judged.evaluations == 0


@pytest.mark.parametrize("tolerance_pp", [0.0, 0.5, 2.0, 100.0])
def test_the_held_out_optimum_is_the_cheapest_plan_that_holds_on_held_out_samples(
    tolerance_pp: float,
) -> None:
    table = make_table(1)
    evaluator = TabularEvaluator(table)
    best = evaluator.held_out_optimum(tolerance_pp)
    holding = [p for p in plans(table) if evaluator.held_out_counts(p).drop_pp <= tolerance_pp]
    assert best.energy_j == min(table.profile.plan_energy_j(plan) for plan in holding)
    assert best.counts == evaluator.held_out_counts(best.plan)
    assert math.isnan(best.divergence)


def test_a_search_is_handed_nothing_of_the_held_out_samples() -> None:
    view = TabularEvaluator(make_table()).for_search()
    assert {name for name in dir(view) if not name.startswith("_")} == {
        "evaluate", "evaluate_all", "evaluations", "profile",
    }  # fmt: skip


def test_evaluations_count_distinct_plans_whoever_asks() -> None:
    evaluator = TabularEvaluator(make_table())
    first, second, *_ = plans(make_table())
    view = evaluator.for_search()
    assert [o.plan for o in view.evaluate_all([first, second, first])] == [first, second, first]
    assert view.evaluate(second) is evaluator.evaluate(second)
    assert view.evaluations == evaluator.evaluations == 2
    assert copy.deepcopy(evaluator) is evaluator


def test_a_plan_in_another_order_is_the_same_plan_and_one_of_another_model_is_refused() -> None:
    table = make_table()
    evaluator = TabularEvaluator(table)
    plan = plans(table)[7]
    turned = PrecisionPlan(dict(reversed(list(plan.items()))))
    assert evaluator.evaluate(turned) == evaluator.evaluate(plan)
    for wrong, reason in (
        ({**plan, "more": "fp16"}, "which the model lacks"),
        (dict(list(plan.items())[1:]), "missing"),
        ({**plan, "block.1": "int4"}, "int4"),
    ):
        with pytest.raises(PlanError, match=reason):
            evaluator.evaluate(PrecisionPlan(wrong))


def test_a_tolerance_below_zero_is_refused() -> None:
    with pytest.raises(GuardrailError, match="tolerance is -1"):
        TabularEvaluator(make_table()).optimum(-1.0)


def test_gymnasium_and_stable_baselines_find_nothing_to_complain_about(path: Path) -> None:
    env = gymnasium.make("wattbit/TabularPrecision-v0", table=str(path))
    check_env(env.unwrapped)
    sb3_checker.check_env(env.unwrapped)


def test_an_episode_is_that_of_the_precision_environment_on_the_table(path: Path) -> None:
    env = gymnasium.make("wattbit/TabularPrecision-v0", table=path, penalty=3.0, gate=SearchGate(0.5))
    same = LayerPrecisionEnv(TabularEvaluator(make_table()), penalty=3.0, gate=SearchGate(0.5))
    observation, _ = env.reset(seed=5)
    expected, _ = same.reset(seed=5)
    for action in (2, 0, 1, 2):
        assert np.array_equal(observation, expected)
        observation, reward, done, _, info = env.step(action)
        expected, expected_reward, *_ = same.step(action)
        assert reward == expected_reward
    assert done
    assert list(info["plan"].values()) == ["int3", "fp16", "int8", "int3"]
    assert info["evaluations"] == 1


def test_the_environment_refuses_what_is_no_table_and_what_is_no_setting(path: Path) -> None:
    with pytest.raises(DataError, match="no table 'nope'"):
        gymnasium.make("wattbit/TabularPrecision-v0", table="nope")
    with pytest.raises(ConfigError, match="penalty"):
        gymnasium.make("wattbit/TabularPrecision-v0", table=path, penalty=-1.0)


def test_a_budgeted_search_sees_the_table_like_any_evaluator() -> None:
    table = make_table()
    evaluator = TabularEvaluator(table)
    view = evaluator.for_search()
    archive = Archive(view.evaluate(table.profile.reference_plan), SearchGate(0.5))
    searching = ArchivingEvaluator(view, "mine", (archive,), 10)
    for plan in plans(table)[:10]:
        searching.evaluate(plan)
    assert archive.best(100.0).energy_j >= evaluator.optimum(100.0).energy_j
