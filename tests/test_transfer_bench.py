"""The transfer benchmark: only weights carry over, and what is reported is what the policies propose."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from made_table import make_table
from quick_ppo import quick_agent
from synthetic import make_outcome

from agents.archive import Archive, ArchivingEvaluator
from agents.ppo import PPOAgent
from agents.ppo_search import DirectPPO
from agents.search_comparison import observed_pp_per_nat
from agents.search_method import SearchTask
from agents.surrogate.surrogate_evaluator import SurrogateEvaluator
from agents.surrogate_ppo import SurrogatePPO, SurrogateSettings
from envs import plan_table
from scripts import bench
from scripts.benchmarks import transfer_bench
from scripts.benchmarks.search_cells import CellResult, SearchCell, greedy_plans, run_search
from scripts.benchmarks.search_methods import RAW, TOLERANCES_PP, environment
from scripts.benchmarks.search_problems import open_problem, optimum_j
from scripts.benchmarks.transfer_bench import carry_over, judge
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
from wattbit.plan import PrecisionPlan


def small_agent(checkpoint: Path | None) -> PPOAgent:
    """An agent that learns next to nothing, at once."""
    return quick_agent(
        environment(RAW), n_envs=2, episodes=4, n_epochs=1, net_arch=(8,), imitation_updates=5,
        checkpoint=checkpoint,
    )  # fmt: skip


def quick_method(checkpoint: Path | None) -> DirectPPO:
    """PPO that learns next to nothing, at once."""
    return DirectPPO(small_agent(checkpoint), 64)


def quick_rounds(checkpoint: Path | None) -> SurrogatePPO:
    """The shipped method, made short."""
    settings = SurrogateSettings(
        rounds=1, samples_per_tolerance=1, climbs=0, updates_per_round=1, final_updates=1
    )
    return SurrogatePPO(small_agent(checkpoint), 64, settings)


@pytest.fixture
def tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[str, str]:
    """The names of two tables of the same precisions."""
    # Tables are read once and kept by name, so that each test needs names of its own.
    names = f"{request.node.name}_a", f"{request.node.name}_b"
    for seed, name in enumerate(names):
        (tmp_path / f"{name}.npz").write_bytes(make_table(seed).to_bytes())
    monkeypatch.setattr(plan_table, "TABLES", tmp_path)
    return names


def make_task(problem: str, budget: int) -> SearchTask:
    """A search with the raw gate and an empty archive."""
    evaluator = open_problem(problem, 0)
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), RAW)
    return SearchTask(
        ArchivingEvaluator(evaluator, "ppo", (archive,), budget), archive, TOLERANCES_PP, budget, 0
    )


def finding(what: str, network: str, evaluations: int, seed: int, regret: float) -> Finding:
    """A finding of the same regret at every tolerance."""
    regrets = [regret] * len(TOLERANCES_PP)
    return Finding("other", network, what, evaluations, seed, regrets)


# --- what carries over --------------------------------------------------------------------------------------


def test_a_few_shot_search_starts_with_the_trained_weights_and_nothing_else(
    tables: tuple[str, str], tmp_path: Path
) -> None:
    method = quick_method(None)
    run_search(method, SearchCell(tables[0], "ppo", 12, 0, "raw"))
    trained = method.ppo.opened
    assert trained.num_timesteps > 0

    task = make_task(tables[1], 8)
    carry_over(trained, small_agent(tmp_path / "agent.zip"), task)
    going_on = small_agent(tmp_path / "agent.zip")
    model = going_on.open(task, SurrogateEvaluator(task.evaluator.profile))
    weights = trained.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.policy.state_dict().items())
    assert model.num_timesteps == 0
    assert model.policy.optimizer.state_dict()["state"] == {}
    assert going_on.learning_curve == []
    assert task.evaluator.evaluations == len(task.archive) == 0


def test_a_few_shot_search_trains_as_long_as_one_from_scratch_and_keeps_its_budget(
    tables: tuple[str, str], tmp_path: Path
) -> None:
    trained, scratch, going_on = quick_method(None), quick_rounds(None), quick_rounds(tmp_path / "agent.zip")
    run_search(trained, SearchCell(tables[0], "ppo", 12, 0, "raw"))
    cell = SearchCell(tables[1], "ppo", 9, 0, "raw")
    start = partial(carry_over, trained.ppo.opened, going_on.ppo)
    results = run_search(scratch, cell), run_search(going_on, cell, start)
    assert all(1 <= len(result.outcomes) <= 9 for result in results)
    assert scratch.ppo.opened.num_timesteps == going_on.ppo.opened.num_timesteps > 0


def test_a_policy_proposes_plans_for_networks_of_any_depth() -> None:
    method = quick_method(None)
    run_search(method, SearchCell("synthetic_5", "ppo", 8, 0, "raw"))
    deeper = open_problem("synthetic_9", 1)
    proposed = greedy_plans(method.ppo, deeper)
    assert tuple(proposed) == TOLERANCES_PP
    assert all(set(o.plan) == set(deeper.profile.layer_names) for o in proposed.values())


# --- findings -----------------------------------------------------------------------------------------------


def test_every_way_is_measured_on_the_network_that_it_is_about(tables: tuple[str, str]) -> None:
    source, target = tables
    found = transfer_bench.transfer(source, [target], 0, quick_method)
    assert [(f.what, f.trained_on, f.network, f.evaluations) for f in found] == [
        (OWN, source, source, 200),
        (SCRATCH, None, source, 20),
        (SCRATCH, None, source, 40),
        (ZERO_SHOT, source, target, 0),
        (ADDITIVE, source, target, 0),
        (TRANSFERRED, source, target, 20),
        (TRANSFERRED, source, target, 40),
    ]
    assert all(regret >= 0.0 for f in found for regret in f.regrets)


def test_a_zero_shot_plan_that_breaks_the_gate_costs_the_reference_energy(tables: tuple[str, str]) -> None:
    profile = open_problem(tables[0], 0).profile
    reference = make_outcome(profile.reference_plan, profile.reference_energy_j)
    plan = PrecisionPlan.uniform(profile.layer_names, "int3")
    cheap = make_outcome(plan, profile.plan_energy_j(plan), lost=30, samples=1000)  # 3 pp, which 3 pp allows
    cell = SearchCell(tables[0], "ppo", 0, 0, "raw")
    found = judge(CellResult(cell, reference, (), dict.fromkeys(TOLERANCES_PP, cheap)), "other", ZERO_SHOT)
    assert found.breaks == [tolerance_pp < 3.0 for tolerance_pp in TOLERANCES_PP]
    energies_j = [reference.energy_j if breaks else cheap.energy_j for breaks in found.breaks]
    optima_j = [optimum_j(tables[0], 0, tolerance_pp, RAW) for tolerance_pp in TOLERANCES_PP]
    expected = [energy_j / best_j - 1.0 for energy_j, best_j in zip(energies_j, optima_j, strict=True)]
    assert found.regrets == found.proposed == pytest.approx(expected)


def test_the_reference_as_a_proposal_breaks_nothing(tables: tuple[str, str]) -> None:
    reference = open_problem(tables[0], 0).evaluate(open_problem(tables[0], 0).profile.reference_plan)
    result = CellResult(SearchCell(tables[0], "ppo", 0, 0, "raw"), reference, (), {0.25: reference})
    assert judge(result, "other", ZERO_SHOT).breaks == [False]


def test_points_per_nat_are_the_median_of_plans_whose_drop_says_something(tables: tuple[str, str]) -> None:
    profile = open_problem(tables[0], 0).profile
    plans = [profile.reference_plan.replace(**{name: "int8"}) for name in profile.layer_names[:3]]
    # 1 of 1,000 samples is no more than chance, and so is what is lost of a ruined network.
    outcomes = [make_outcome(p, 1.0, lost=n, samples=1000) for p, n in zip(plans, (1, 20, 500), strict=True)]
    expected = 2.0 / profile.plan_sensitivity(plans[1])
    assert observed_pp_per_nat(profile, outcomes) == pytest.approx(expected)
    assert observed_pp_per_nat(profile, outcomes[:1]) == 10.0


# --- tables -------------------------------------------------------------------------------------------------


def test_rows_tell_what_breaks_and_what_the_rest_is_worth() -> None:
    found = [
        Finding("a", "b", ZERO_SHOT, 0, 0, [1.0, 0.1], [1.0, 0.1], [True, False]),
        Finding("a", "b", ZERO_SHOT, 0, 1, [0.3, 0.2], [0.3, 0.2], [False, False]),
    ]
    padded = [
        Finding(
            f.trained_on, f.network, f.what, f.evaluations, f.seed,
            [*f.regrets] * 3, [*f.proposed] * 3, [*f.breaks] * 3,
        )
        for f in found
    ]  # fmt: skip
    row, by_tolerance = regret_rows(padded)
    assert row["regret_%"] == pytest.approx(40.0)
    assert row["broken_%"] == pytest.approx(25.0)
    assert row["regret_if_held_%"] == pytest.approx(20.0)
    assert by_tolerance["0.25 pp"] == pytest.approx(65.0)
    assert float(row["low_%"] or 0.0) < 40.0 < float(row["high_%"] or 0.0)


def test_the_difference_is_paired_by_network_and_seed() -> None:
    found = [
        finding(what, network, 20, seed, base + more)
        for what, more in ((SCRATCH, 0.0), (TRANSFERRED, 0.05))
        for network, base in (("a", 0.1), ("b", 3.0))
        for seed in range(3)
    ]
    rows = difference_rows(found)
    assert [row["network"] for row in rows] == ["a", "b", "all"]
    for row in rows:
        assert [row[key] for key in ("regret_%", "low_%", "high_%")] == pytest.approx([5.0] * 3)


def test_figures_are_means_over_networks_and_seeds() -> None:
    found = [
        finding(what, network, 20, 0, regret)
        for what in (TRANSFERRED, SCRATCH, ILP)
        for network, regret in (("a", 0.1), ("b", 0.3))
    ]
    regrets = [0.5] * len(TOLERANCES_PP)
    breaks = [True, *[False] * (len(TOLERANCES_PP) - 1)]
    found += [Finding("b", "a", what, 0, 0, regrets, regrets, breaks) for what in (ZERO_SHOT, ADDITIVE)]
    made = figures(found)
    assert made["few_shot_regret_20"] == pytest.approx(0.2)
    assert made["zero_shot_regret"] == pytest.approx(0.5)
    assert made["zero_shot_broken"] == pytest.approx(1 / len(TOLERANCES_PP))


# --- the command --------------------------------------------------------------------------------------------


def test_the_bench_states_zero_shot_and_few_shot_regret_beside_that_from_scratch(
    tables: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(transfer_bench, "NETWORKS", tables)
    monkeypatch.setattr(transfer_bench, "shipped_method", quick_method)
    path = tmp_path / "out.json"
    bench.main(["transfer", "--seeds", "1", "--workers", "1", "--json", str(path)])
    data = json.loads(path.read_text(encoding="utf-8"))
    wanted = {f"{name}_regret_{budget}" for name in ("few_shot", "scratch", "ilp") for budget in (20, 40)}
    assert set(data["figures"]) == {
        *wanted,
        "zero_shot_regret",
        "zero_shot_broken",
        "zero_shot_additive_regret",
    }
    assert "few-shot regret minus that from scratch" in capsys.readouterr().out


def test_the_method_is_the_shipped_one(tmp_path: Path) -> None:
    method = transfer_bench.shipped_method(tmp_path / "agent.zip")
    assert method.total_timesteps == 40_000


@pytest.mark.parametrize("name", ["seeds", "workers"])
def test_numbers_below_one_are_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench.main(["transfer", f"--{name}", "0"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"error: --{name} is 0, must be at least 1\n"
