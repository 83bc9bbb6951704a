"""PPO on a surrogate: few evaluations, none of them twice, a policy that is good by itself."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_ppo import quick_agent
from synthetic import Comparisons, FormulaEvaluator, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.baselines import ILP
from agents.export import export_policy
from agents.ppo import draw_plans
from agents.search_method import SearchTask
from agents.stopping import BudgetSpent, StopRule
from agents.surrogate_ppo import SurrogatePPO, SurrogateSettings
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from envs.synthetic import SyntheticEvaluator
from wattbit.errors import ConfigError
from wattbit.features import FeatureEncoder
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan

TOLERANCES = (0.5, 2.0)
RAW = SearchGate(0.5)


def make_method(
    settings: dict[str, Any] | None = None, total_timesteps: int = 600, **arguments: Any
) -> SurrogatePPO:
    """A method that learns in seconds."""
    quick = {"samples_per_tolerance": 6, "climbs": 1, "final_updates": 300, "rounds": 5}
    make_env = partial(LayerPrecisionEnv, gate=RAW, tolerance_range_pp=(0.2, 4.0))
    agent = {"make_env": make_env, "episodes": 8, "net_arch": (64, 64), "imitation_updates": 30}
    return SurrogatePPO(
        quick_agent(**{**agent, **arguments}),
        total_timesteps,
        SurrogateSettings(**{**quick, **(settings or {})}),
    )


class Search:
    """One search of a network of ``layers`` layers, from an empty archive."""

    def __init__(self, layers: int = 12, budget: int = 40, seed: int = 0) -> None:
        self.evaluator = SyntheticEvaluator(layers, seed=1)
        self.reference = self.evaluator.evaluate(self.evaluator.profile.reference_plan)
        self.archive = Archive(self.reference, RAW)
        archiving = ArchivingEvaluator(self.evaluator, "ppo", (self.archive,), budget)
        self.task = SearchTask(archiving, self.archive, TOLERANCES, budget, seed)

    def regret(self, tolerance_pp: float) -> float:
        optimum = self.evaluator.optimum(tolerance_pp, RAW)
        return self.archive.best(tolerance_pp).energy_j / optimum.energy_j - 1.0

    @property
    def plans(self) -> list[PrecisionPlan]:
        return [outcome.plan for outcome in self.archive]


def searched(seed: int) -> tuple[Search, SurrogatePPO]:
    """A search that has come to its end, and its method."""
    search, method = Search(seed=seed), make_method({"final_updates": 1500})
    method.search(search.task)
    return search, method


@pytest.fixture(scope="module")
def first() -> tuple[Search, SurrogatePPO]:
    return searched(0)


def test_it_comes_nearer_to_the_optimum_than_the_additive_model_with_as_many_plans(
    first: tuple[Search, SurrogatePPO],
) -> None:
    search, additive = first[0], Search()
    with suppress(BudgetSpent):
        ILP().search(additive.task)
    assert sum(map(search.regret, TOLERANCES)) < 0.5 * sum(map(additive.regret, TOLERANCES))


def test_it_evaluates_exactly_its_budget_and_no_plan_twice() -> None:
    search = Search(budget=33)
    make_method().search(search.task)
    assert search.task.evaluator.evaluations == len(search.plans) == len(set(search.plans)) == 33


def test_the_policy_alone_proposes_what_the_search_found(first: tuple[Search, SurrogatePPO]) -> None:
    search, method = first
    agent = method.ppo
    encoder = FeatureEncoder(search.evaluator.profile, agent.pp_per_nat)
    drawn = draw_plans(agent.opened, encoder, TOLERANCES, greedy=True)
    names = search.evaluator.profile.precisions
    for row, tolerance in zip(drawn, TOLERANCES, strict=True):
        best = search.archive.best(tolerance).plan
        assert np.mean([names[index] == name for index, name in zip(row, best.values(), strict=True)]) > 0.9


def test_equal_seeds_ask_for_equal_plans_and_others_do_not(first: tuple[Search, SurrogatePPO]) -> None:
    assert searched(0)[0].plans == first[0].plans
    assert searched(1)[0].plans != first[0].plans


@pytest.mark.parametrize("layers", [1, 2])
def test_a_network_with_fewer_plans_than_the_budget_is_searched_and_done(layers: int) -> None:
    search = Search(layers, budget=100)
    make_method(total_timesteps=60).search(search.task)
    assert len(search.plans) <= 4**layers
    assert all(search.regret(tolerance) == pytest.approx(0.0) for tolerance in TOLERANCES)


def test_what_is_known_already_needs_no_initial_design() -> None:
    search = Search(budget=200)
    ILP().search(SearchTask(search.task.evaluator, search.archive, TOLERANCES, 30, 0))
    known = len(search.plans)
    make_method({"initial_share": 0.05}, total_timesteps=0).search(
        SearchTask(search.task.evaluator, search.archive, TOLERANCES, known + 6, 0)
    )
    assert len(search.plans) == known + 6
    additive = Search(budget=200)
    ILP().search(additive.task)
    assert not set(search.plans[known:]) & set(additive.plans[:8])


def request_after(most: int, evaluator: FormulaEvaluator, stop: StopRule, plan: PrecisionPlan) -> None:
    """Ask for a stop once more than ``most`` plans have run."""
    if len(evaluator.ran) > most:
        stop.request()


def test_interrupted_anywhere_it_leaves_its_archive_and_an_agent_and_resumes_without_repeating(
    tmp_path: Path,
) -> None:
    profile = make_profile(4, missing={0: ("int2",)})
    compare = Comparisons(tmp_path)
    checkpoint = tmp_path / "ppo.zip"
    for after in (1, 12, 20):
        stop, known = StopRule(), compare.entries(profile)
        evaluator = FormulaEvaluator(profile, known=[outcome for outcome, _ in known])
        before = len(known)
        evaluator.before_run = partial(request_after, after, evaluator, stop)
        method = make_method(checkpoint=checkpoint)
        comparison = compare.make(evaluator, stop)
        assert not comparison.run(method, 80, 0, seeded=True)
        export_policy(method.ppo.opened, profile.precisions, method.ppo.pp_per_nat)
        now = compare.entries(profile)
        assert len(now) > before
        assert not {outcome.plan for outcome, _ in known} & set(evaluator.ran[1:])
    compare.close()
    plans = [outcome.plan for outcome, _ in compare.entries(profile)]
    assert len(plans) == len(set(plans))


@pytest.mark.parametrize(
    ("name", "value"), [("initial_share", 1.5), ("rounds", 0), ("climbs", -1), ("relearn_every", 0)]
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}, must be"):
        SurrogateSettings(**{name: value})


def test_predicted_drops_are_not_bounded_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact bounds of a prediction's made-up counts would take most of the search's time, and be wrong."""
    judged: list[int] = []
    bound_pp = SearchGate.bound_pp

    def watch(gate: SearchGate, counts: PairedCounts) -> float:
        if gate.alpha < 0.5:
            judged.append(counts.samples)
        return bound_pp(gate, counts)

    monkeypatch.setattr(SearchGate, "bound_pp", watch)
    search = Search(budget=20)
    careful = Archive(search.reference, SearchGate(0.2))
    evaluator = ArchivingEvaluator(search.evaluator, "ppo", (careful,), 20)
    make_env = partial(LayerPrecisionEnv, gate=SearchGate(0.2), tolerance_range_pp=(0.2, 4.0))
    make_method(make_env=make_env).search(SearchTask(evaluator, careful, TOLERANCES, 20, 0))
    assert set(judged) == {search.evaluator.samples}
