"""The search benchmark: two regrets that mean what they say, and finished searches that are not run again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic import make_outcome, make_profile

from envs import plan_table
from envs.gate import SearchGate
from envs.plan_table import PlanTable
from scripts import bench
from scripts.benchmarks import Benchmark, search_bench, search_cells, search_figures
from scripts.benchmarks.search_cells import CellResult, SearchCell, run_cell, run_cells
from scripts.benchmarks.search_methods import METHODS, RAW, TOLERANCES_PP
from scripts.benchmarks.search_problems import open_problem
from scripts.benchmarks.search_scores import (
    Interval,
    anytime_regrets,
    generalisation,
    optimisation_regrets,
    policy_regrets,
)
from scripts.benchmarks.search_tables import Results
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(3, ("fp32", "int8", "int4"), conversions=False)
NAMES = PROFILE.layer_names
SAMPLES = 1000


def make_table(search_lost: Sequence[int], held_out_lost: Sequence[int]) -> PlanTable:
    """A table of all 27 plans that lose so many of 1,000 samples."""
    plans = [PrecisionPlan(dict(zip(NAMES, p, strict=True))) for p in product(PROFILE.precisions, repeat=3)]
    zeros = np.zeros(len(plans), np.uint16)
    return PlanTable(
        profile=PROFILE,
        energy_j=np.array([PROFILE.plan_energy_j(plan) for plan in plans]),
        search_reference_only=np.array(search_lost, np.uint16),
        search_plan_only=zeros,
        search_divergence=(np.array(search_lost, np.float32) / SAMPLES).astype(np.float32),
        held_out_reference_only=np.array(held_out_lost, np.uint16),
        held_out_plan_only=zeros,
        search_samples=SAMPLES,
        held_out_samples=SAMPLES,
        about={},
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a table on which plans lose 0 to 26 of 1,000 samples, and twice that on held-out data."""
    # Tables are read once and kept by name, so that each test needs a name of its own.
    name = f"table_{request.node.name}".replace("[", "_").replace("]", "").replace("-", "_")
    (tmp_path / f"{name}.npz").write_bytes(make_table(range(27), range(0, 54, 2)).to_bytes())
    monkeypatch.setattr(plan_table, "TABLES", tmp_path)
    return name


def result_of(problem: str, plans: Sequence[PrecisionPlan], budget: int = 10) -> CellResult:
    """A result that evaluated ``plans``, in this order."""
    evaluator = open_problem(problem, 0)
    reference = evaluator.evaluate(evaluator.profile.reference_plan)
    return CellResult(
        SearchCell(problem, "ilp", budget, 0, "raw"), reference, tuple(evaluator.evaluate_all(plans))
    )


def every_plan() -> list[PrecisionPlan]:
    return [PrecisionPlan(dict(zip(NAMES, p, strict=True))) for p in product(PROFILE.precisions, repeat=3)]


# --- scores -------------------------------------------------------------------------------------------------


def test_who_evaluates_every_plan_has_no_optimisation_regret_and_who_evaluates_none_has_the_references(
    table: str,
) -> None:
    assert optimisation_regrets(result_of(table, every_plan())) == [0.0] * len(TOLERANCES_PP)
    nothing = optimisation_regrets(result_of(table, []))
    assert nothing == sorted(nothing)
    assert nothing[-1] > 0.0


def test_a_plan_that_breaks_the_tolerance_on_held_out_data_costs_the_reference_energy(table: str) -> None:
    result = result_of(table, every_plan())
    reference_j = result.reference.energy_j
    for tolerance_pp, found in zip(TOLERANCES_PP, generalisation(result, RAW), strict=True):
        best = min(
            (PROFILE.plan_energy_j(p) for i, p in enumerate(every_plan()) if 0.2 * i <= tolerance_pp),
        )
        chosen = min(
            ((PROFILE.plan_energy_j(p), i) for i, p in enumerate(every_plan()) if 0.1 * i <= tolerance_pp)
        )
        leaks = 0.2 * chosen[1] > tolerance_pp
        assert found.leaked is leaks
        assert found.regret == pytest.approx((reference_j if leaks else chosen[0]) / best - 1.0)


def test_a_stricter_gate_leaks_less(table: str) -> None:
    result = result_of(table, every_plan())
    leaked = [sum(g.leaked for g in generalisation(result, SearchGate(a))) for a in (0.5, 0.1, 0.001)]
    assert leaked == sorted(leaked, reverse=True)
    assert leaked[0] > leaked[-1]


def test_the_regret_at_any_time_ends_at_the_final_one_and_never_rises(table: str) -> None:
    result = result_of(table, every_plan()[::-1][:9], budget=12)
    curve = anytime_regrets(result)
    assert len(curve) == 13
    assert all(a >= b for a, b in pairwise(curve))
    assert curve[0] == pytest.approx(np.mean(optimisation_regrets(result_of(table, []))))
    assert curve[-1] == pytest.approx(np.mean(optimisation_regrets(result)))


def test_a_policy_whose_plan_breaks_the_gate_counts_as_the_reference(table: str) -> None:
    evaluator = open_problem(table, 0)
    worst = evaluator.evaluate(PrecisionPlan.uniform(NAMES, "int4"))  # loses 2.6 pp
    result = result_of(table, [])
    judged = CellResult(result.cell, result.reference, (), {1.0: worst, 3.0: worst})
    broken, kept = policy_regrets(judged)
    assert broken == optimisation_regrets(result)[TOLERANCES_PP.index(1.0)]
    assert kept == 0.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=8))
def test_an_interval_surrounds_its_mean(values: list[float]) -> None:
    found = Interval.of(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high


def test_five_seeds_have_students_interval_and_one_has_none() -> None:
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.high == pytest.approx(3.0 + 2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    assert Interval.of([1.0]) == Interval(1.0, None, None)


# --- cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ilp", "greedy", "uniform", "random", "nsga2", "local_search"])
def test_a_cell_keeps_its_budget_and_starts_from_nothing(table: str, method: str) -> None:
    result = run_cell(SearchCell(table, method, 8, 0, "raw"))
    assert 1 <= len(result.outcomes) <= 8
    assert result.policy == {}


def test_a_search_sees_nothing_but_the_search_samples(table: str) -> None:
    evaluator = open_problem(table, 0)
    assert not hasattr(evaluator, "held_out_counts")
    assert not hasattr(evaluator, "optimum")


def test_what_is_finished_is_recalled_and_not_run_again(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [SearchCell(table, "random", 5, seed, "raw") for seed in (0, 1)]
    first = run_cells(cells[:1], tmp_path / "cache")
    ran: list[SearchCell] = []

    def counted(cell: SearchCell) -> CellResult:
        ran.append(cell)
        return run_cell(cell)

    monkeypatch.setattr(search_cells, "run_cell", counted)
    both = run_cells(cells, tmp_path / "cache")
    assert ran == cells[1:]
    assert both[cells[0]] == first[cells[0]]


def test_a_torn_file_is_never_taken_for_a_finished_search(table: str, tmp_path: Path) -> None:
    cell = SearchCell(table, "random", 5, 0, "raw")
    (tmp_path / cell.file_name).with_suffix(".part").write_text('{"schema": 1, "pla')
    assert len(run_cells([cell], tmp_path)[cell].outcomes) == 5


# --- the command --------------------------------------------------------------------------------------------


def run_bench(table: str, folder: Path, *more: str) -> Benchmark:
    """The bench on one table, three cheap methods, in this process."""
    path = folder / "out.json"
    arguments = ["--problems", table, "--methods", "ilp,random,nsga2", "--seeds", "0,1", "--budgets", "6,12"]
    bench.main(["search", *arguments, "--workers", "1", "--json", str(path), *more])
    data = json.loads(path.read_text(encoding="utf-8"))
    return Benchmark(data["bench"], data["device"], data["figures"], tuple(data["rows"]))


def test_the_bench_states_both_regrets_the_leak_rate_and_every_gate_level(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_bench(table, tmp_path, "--figures", str(tmp_path / "figures"))
    for name in ("regret_ilp_6", "regret_nsga2_12", "regret_best_baseline_12"):
        assert made.figures[f"{name}_{table}"] >= 0.0
    assert 0.0 <= made.figures["leak_rate"] <= made.figures["leak_rate_raw"] <= 1.0
    titles = {str(row["table"]) for row in made.rows}
    for word in ("optimisation", "generalisation", "gates"):
        assert any(word in title for title in titles), word
    assert (tmp_path / "figures" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "optimisation regret" in capsys.readouterr().out


def test_a_figure_of_one_problem_and_all_methods_has_room_for_its_legend_and_a_number_at_each_power(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **more: drawn.append(figure))
    found = result_of(table, every_plan()[::-1][:10])
    cells = [replace(found, cell=replace(found.cell, method=method)) for method in METHODS]
    search_figures.draw_search(Results(tuple(cells)), [table], 10, tmp_path / "unused.png")
    [figure] = drawn
    figure.draw_without_rendering()
    [legend], [axes] = figure.legends, figure.axes
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) > 1
    # Methods that share a colour and a mark are told apart by their lines.
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == len(METHODS)


def test_the_time_by_layers_is_fitted_by_a_power() -> None:
    results = []
    for layers in (25, 50, 100):
        plan = PrecisionPlan.uniform([f"l{i}" for i in range(layers)], "fp32")
        cell = SearchCell(f"synthetic_{layers}", "ppo", 200, 0, "raw")
        results.append(CellResult(cell, make_outcome(plan, 1.0), (), {}, 1.0, 0.01 * layers**1.5))
    assert search_bench.scaling_exponent(results) == pytest.approx(1.5)


def test_every_method_of_the_comparison_has_its_name() -> None:
    for name, make in METHODS.items():
        assert make(SearchGate()).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ilp,pso"], "no method 'pso'; choose from ppo, ilp"),
        (["--problems", "mnist"], "no problem 'mnist'; choose from"),
        (["--problems", ""], "no problem is given"),
        (["--budgets", "0"], "--budgets is '0', must be whole numbers of at least 1"),
        (["--seeds", "a"], "--seeds is 'a', must be whole numbers of at least 0"),
        (["--cach", "x"], "unrecognized arguments"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench.main(["search", *arguments])
    assert exit_info.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
