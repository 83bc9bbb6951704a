"""PPO on a small model with interactions: real training, budgets, interruptions and resuming."""

import io
import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_ppo import quick_agent
from synthetic import Comparisons, FormulaEvaluator, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.baselines import ILP, Greedy
from agents.checkpoint import load_agent
from agents.export import export_policy
from agents.ppo import divisor_near
from agents.ppo_search import DirectPPO, PPOSearch
from agents.search_comparison import SearchComparison
from agents.search_method import SearchTask
from agents.stopping import StopRule
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError, OutputError
from wattbit.plan import PrecisionPlan

PROFILE = make_profile(4, missing={0: ("int2",)})
PP_PER_NAT = 33.0


def make_ppo(total_timesteps: int = 512, **arguments: Any) -> DirectPPO:
    """A search that trains in a second."""
    make_env = partial(LayerPrecisionEnv, pp_per_nat=PP_PER_NAT, gate=SearchGate())
    return DirectPPO(quick_agent(**{"make_env": make_env, **arguments}), total_timesteps)


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Comparisons]:
    comparisons = Comparisons(tmp_path)
    yield comparisons
    comparisons.close()


def make_task(budget: int = 1000, seed: int = 0) -> tuple[SearchTask, FormulaEvaluator]:
    """A search with an empty archive, whose budget nothing enforces but the method."""
    evaluator = FormulaEvaluator(PROFILE)
    archive = Archive(FormulaEvaluator(PROFILE).evaluate(PROFILE.reference_plan), SearchGate())
    task = SearchTask(ArchivingEvaluator(evaluator, "ppo", (archive,)), archive, (0.5, 2.0), budget, seed)
    return task, evaluator


def search(compare: Comparisons, method: PPOSearch, budget: int = 60, seed: int = 0) -> SearchComparison:
    """Baselines, then the method."""
    comparison = compare.make(FormulaEvaluator(PROFILE))
    for baseline in (Greedy(), ILP()):
        comparison.run(baseline, 15, seed)
    assert comparison.run(method, budget, seed, seeded=True)
    return comparison


# What it finds.


def test_it_finds_plans_at_least_as_good_as_those_it_started_from_and_new_ones(compare: Comparisons) -> None:
    comparison = search(compare, make_ppo())
    ppo = comparison.runs[-1]
    for tolerance in comparison.tolerances_pp:
        best = ppo.archive.best(tolerance)
        assert all(best.energy_j <= run.archive.best(tolerance).energy_j for run in comparison.runs)
        assert ppo.archive.passes(best, tolerance)
    assert sum(ppo.archive.method(o.plan) == "ppo" for o in ppo.archive) > 10


def test_without_a_warm_start_it_still_learns(compare: Comparisons) -> None:
    method = make_ppo(imitation_updates=0, total_timesteps=3000, learning_rate=3e-3)
    search(compare, method, budget=500)
    rewards = [point.mean_reward for point in method.ppo.learning_curve]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])


def test_with_nothing_to_imitate_it_starts_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> float:
        raise AssertionError("imitated the reference plan")

    monkeypatch.setattr("agents.ppo.imitate", refuse)
    task, _ = make_task()
    make_ppo(total_timesteps=64).search(task)
    assert task.evaluator.evaluations > 0


def test_equal_seeds_ask_for_equal_plans_and_others_do_not() -> None:
    def plans(seed: int) -> list[PrecisionPlan]:
        task, evaluator = make_task(seed=seed)
        make_ppo().search(task)
        return evaluator.ran

    first = plans(1)
    assert plans(1) == first
    assert plans(2) != first


def test_demonstrations_are_not_charged_to_the_budget(compare: Comparisons) -> None:
    comparison = compare.make(FormulaEvaluator(PROFILE))
    comparison.run(ILP(), 15, 0)
    method = make_ppo(total_timesteps=0)
    comparison.run(method, 10, 0, seeded=True)
    assert all(comparison.archive.method(o.plan) == "ilp" for o in comparison.archive)
    assert method.ppo.model is not None
    assert method.ppo.learning_curve == []


# Budgets.


@pytest.mark.parametrize("budget", [1, 10, 37])
def test_it_asks_for_exactly_its_budget_and_not_a_plan_more(compare: Comparisons, budget: int) -> None:
    method = make_ppo(total_timesteps=100_000)
    comparison = search(compare, method, budget=budget)
    asked = [plan for plan, method in ((o.plan, m) for o, m in compare.entries(PROFILE)) if method == "ppo"]
    assert len(asked) == len(set(asked)) == budget
    if budget > 4:  # before that no episode has ended in all environments
        assert method.ppo.learning_curve[-1].evaluations == budget
    assert comparison.runs[-1].evaluations == len(comparison.archive)


def test_it_stops_at_the_budget_also_where_nobody_enforces_it() -> None:
    task, _ = make_task(budget=10)
    method = make_ppo(total_timesteps=100_000)
    method.search(task)
    assert 10 <= task.evaluator.evaluations < 10 + 4  # the environments end their episodes together


def test_a_budget_that_is_spent_already_buys_nothing() -> None:
    task, evaluator = make_task(budget=0)
    method = make_ppo()
    method.search(task)
    assert evaluator.ran == []
    assert method.ppo.model is not None


# The learning curve.


def test_the_learning_curve_has_a_point_a_rollout() -> None:
    reports: list[tuple[int, int, str]] = []
    method = make_ppo()
    task, _ = make_task()
    method.search(replace(task, report=lambda *report: reports.append(report)))
    steps = [point.timesteps for point in method.ppo.learning_curve]
    assert steps == [64 * (i + 1) for i in range(8)]
    assert len(reports) == 8
    assert reports[-1][2].startswith("reward ")
    for point in method.ppo.learning_curve:
        assert math.isfinite(point.mean_reward)
        assert set(point.best_saving) == {0.5, 2.0}
    for tolerance in (0.5, 2.0):
        savings = [point.best_saving[tolerance] for point in method.ppo.learning_curve]
        assert savings == sorted(savings)
    assert method.ppo.learning_curve[0].entropy is None
    assert all(point.entropy is not None and point.entropy > 0 for point in method.ppo.learning_curve[1:])
    evaluations = [point.evaluations for point in method.ppo.learning_curve]
    assert evaluations == sorted(evaluations)


@pytest.mark.parametrize(("n_envs", "episodes"), [(1, 1), (3, 1), (4, 7)])
def test_every_rollout_holds_whole_episodes_whatever_the_numbers(n_envs: int, episodes: int) -> None:
    method = make_ppo(n_envs=n_envs, episodes=episodes, total_timesteps=100)
    task, _ = make_task()
    method.search(task)
    assert all(math.isfinite(point.mean_reward) for point in method.ppo.learning_curve)
    assert method.ppo.learning_curve[0].timesteps % (4 * n_envs) == 0
    assert method.ppo.model is not None
    assert method.ppo.model.n_steps * n_envs % (method.ppo.model.batch_size or 0) == 0


def test_a_model_of_one_layer_can_be_trained_too() -> None:
    evaluator = FormulaEvaluator(make_profile(1))
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), SearchGate())
    method = make_ppo(n_envs=1, episodes=1, total_timesteps=20)
    method.search(SearchTask(ArchivingEvaluator(evaluator, "ppo", (archive,)), archive, (1.0,), 50, 0))
    assert method.ppo.learning_curve


@pytest.mark.parametrize(("floor", "sign"), [(10.0, 1), (0.0, -1)])
def test_the_entropy_bonus_grows_below_its_floor_and_shrinks_above(floor: float, sign: int) -> None:
    method = make_ppo(entropy_floor=floor, ent_coef=0.01)
    task, _ = make_task()
    method.search(task)
    assert method.ppo.model is not None
    assert (method.ppo.model.ent_coef - 0.01) * sign > 0
    assert 0.002 <= method.ppo.model.ent_coef <= 0.2


@pytest.mark.parametrize(
    ("number", "wanted", "divisor"), [(128, 64, 64), (832, 128, 104), (131, 128, 131), (2, 64, 2), (6, 1, 2)]
)
def test_minibatches_divide_a_rollout(number: int, wanted: int, divisor: int) -> None:
    assert divisor_near(number, wanted) == divisor


# Interruption and resuming.


def interrupted(
    compare: Comparisons, after: int, method: PPOSearch
) -> tuple[FormulaEvaluator, SearchComparison]:
    """A search that somebody stops once the method has run ``after`` plans."""
    evaluator, stop = FormulaEvaluator(PROFILE), StopRule()
    comparison = compare.make(evaluator, stop)
    comparison.run(ILP(), 15, 0)
    before = len(evaluator.ran)
    evaluator.before_run = lambda plan: stop.request() if len(evaluator.ran) >= before + after else None
    assert not comparison.run(method, 80, 0, seeded=True)
    return evaluator, comparison


@pytest.mark.parametrize("after", [0, 5, 30])
def test_an_interrupted_agent_can_be_used_and_was_saved(
    compare: Comparisons, tmp_path: Path, after: int
) -> None:
    checkpoint = tmp_path / "ppo.zip"
    method = make_ppo(total_timesteps=50_000, checkpoint=checkpoint)
    evaluator, comparison = interrupted(compare, after, method)
    assert method.ppo.model is not None
    policy = export_policy(method.ppo.model, PROFILE.precisions, method.ppo.pp_per_nat)
    assert policy.pp_per_nat == PP_PER_NAT
    assert checkpoint.exists()
    assert len(comparison.archive) == len(evaluator.ran) - 1
    if after == 30:
        assert method.ppo.learning_curve[-1].timesteps == method.ppo.model.num_timesteps
        assert method.ppo.learning_curve[-1].evaluations >= 30


def test_a_resumed_agent_goes_on_where_it_was_and_repeats_no_plan(
    compare: Comparisons, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "ppo.zip"
    first = make_ppo(total_timesteps=2000, checkpoint=checkpoint)
    interrupted(compare, 30, first)
    known = compare.entries(PROFILE)
    assert first.ppo.model is not None

    evaluator = FormulaEvaluator(PROFILE, known=[outcome for outcome, _ in known])
    comparison = compare.make(evaluator)
    comparison.run(ILP(), 15, 0)
    # Another constant would give the network other features than it was trained on.
    other = partial(LayerPrecisionEnv, pp_per_nat=77.0)
    second = make_ppo(make_env=other, total_timesteps=2000, checkpoint=checkpoint)
    assert comparison.run(second, 80, 0, seeded=True)
    assert second.ppo.model is not None
    assert second.ppo.pp_per_nat == PP_PER_NAT
    assert second.ppo.model.get_env() is not None
    assert {e.pp_per_nat for e in second.ppo.model.env.get_attr("encoder")} == {PP_PER_NAT}  # type: ignore[union-attr]
    assert second.ppo.learning_curve[: len(first.ppo.learning_curve)] == first.ppo.learning_curve
    steps = [point.timesteps for point in second.ppo.learning_curve]
    assert steps == sorted(set(steps))
    assert steps[-1] > first.ppo.model.num_timesteps
    old = {outcome.plan for outcome, _ in known}
    assert not old & set(evaluator.ran)
    asked = [outcome.plan for outcome, method in compare.entries(PROFILE) if method == "ppo"]
    assert len(asked) == len(set(asked)) <= 80


def test_resuming_starts_from_the_weights_that_were_saved(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ppo.zip"
    method = make_ppo(checkpoint=checkpoint)
    task, _ = make_task()
    method.search(task)
    assert method.ppo.model is not None
    resumed = make_ppo(checkpoint=checkpoint, total_timesteps=method.ppo.model.num_timesteps)
    again, evaluator = make_task()
    resumed.search(again)  # the timesteps are spent already
    assert evaluator.ran == []
    assert resumed.ppo.learning_curve == method.ppo.learning_curve
    assert resumed.ppo.model is not None
    assert resumed.ppo.model.num_timesteps == method.ppo.model.num_timesteps
    policies = [export_policy(a.opened, PROFILE.precisions, a.pp_per_nat) for a in (method.ppo, resumed.ppo)]
    assert policies[0].to_bytes() == policies[1].to_bytes()


def test_a_resumed_agent_explores_anew(tmp_path: Path) -> None:
    """With the seed of the start it would draw the first run's tolerances and actions once more."""
    checkpoint = tmp_path / "ppo.zip"
    method = make_ppo(checkpoint=checkpoint, total_timesteps=64, learning_rate=1e-9, imitation_updates=0)
    task, first = make_task()
    method.search(task)
    resumed = make_ppo(checkpoint=checkpoint, total_timesteps=128)
    again, second = make_task()
    resumed.search(again)
    assert second.ran
    assert second.ran[:4] != first.ran[:4]


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "ppo.zip"
    task, _ = make_task()
    make_ppo(checkpoint=checkpoint, total_timesteps=64).search(task)
    before = checkpoint.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    method = make_ppo(checkpoint=checkpoint, total_timesteps=256)
    with pytest.raises(OutputError, match=r"cannot write .*ppo.zip: No space left on device; free space"):
        method.search(make_task()[0])
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("damage", ["torn", "empty", "text", "foreign", "schema", "network"])
def test_a_checkpoint_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    checkpoint = tmp_path / "ppo.zip"
    method = make_ppo(checkpoint=checkpoint, total_timesteps=64)
    method.search(make_task()[0])
    data = checkpoint.read_bytes()
    if damage == "foreign" and method.ppo.model is not None:
        method.ppo.model.save(checkpoint)
    elif damage == "schema":
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(checkpoint, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b'"schema": 2,', b'"schema": 9,'))
    elif damage == "network":
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(checkpoint, "w") as new:
            for name in old.namelist():
                new.writestr(name, b"" if name == "policy.pth" else old.read(name))
    else:
        checkpoint.write_bytes({"torn": data[: len(data) // 2], "empty": b"", "text": b"weights"}[damage])
    with pytest.raises(
        ConfigError, match=r"ppo.zip \(.*\); remove the file to train from the start"
    ) as refused:
        make_ppo(checkpoint=checkpoint).search(make_task()[0])
    assert "\n" not in str(refused.value)


def test_a_checkpoint_for_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ppo.zip"
    make_ppo(checkpoint=checkpoint, total_timesteps=64).search(make_task()[0])
    evaluator = FormulaEvaluator(make_profile(4, ("fp32", "int8")))
    archive = Archive(evaluator.evaluate(evaluator.profile.reference_plan), SearchGate())
    with pytest.raises(ConfigError, match="cannot go on with the agent") as refused:
        make_ppo(checkpoint=checkpoint).search(SearchTask(evaluator, archive, (1.0,), 5, 0))
    assert "\n" not in str(refused.value)


def test_a_checkpoint_holds_what_a_resumed_search_needs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent"  # any name will do
    method = make_ppo(checkpoint=checkpoint, total_timesteps=128)
    method.search(make_task()[0])
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]
    assert method.ppo.model is not None
    venv = method.ppo.model.get_env()
    assert venv is not None
    model, pp_per_nat, curve = load_agent(checkpoint, lambda pp_per_nat: venv)
    assert pp_per_nat == PP_PER_NAT
    assert curve == method.ppo.learning_curve
    assert model.num_timesteps == 128


def test_progress_goes_to_tensorboard_where_a_folder_is_given(tmp_path: Path) -> None:
    method = make_ppo(tensorboard_log=tmp_path, total_timesteps=128)
    method.search(make_task()[0])
    (events,) = tmp_path.rglob("events.out.tfevents*")
    assert b"search/saving_at_2pp" in events.read_bytes()


def test_the_learning_curve_is_json() -> None:
    method = make_ppo(total_timesteps=128)
    method.search(make_task()[0])
    json.dumps([asdict(point) for point in method.ppo.learning_curve], allow_nan=False)
