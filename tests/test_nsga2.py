"""NSGA-II: it keeps its budget to the plan, asks for no plan twice in vain, and improves on its seeds."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import FormulaEvaluator, all_plans, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.baselines import ILP
from agents.nsga2 import NSGA2, Genes
from agents.search_method import SearchMethod, SearchTask
from envs.gate import SearchGate
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

TOLERANCES_PP = (0.5, 1.0, 2.0, 5.0)


def search(
    profile: ModelProfile, budget: int, *, seed: int = 0, method: SearchMethod | None = None
) -> tuple[Archive, list[PrecisionPlan]]:
    """The archive and the plans run; the budget is not enforced here."""
    inner = FormulaEvaluator(profile)
    archive = Archive(FormulaEvaluator(profile).evaluate(profile.reference_plan), SearchGate(0.5))
    evaluator = ArchivingEvaluator(inner, "nsga2", (archive,))
    (method or NSGA2()).search(SearchTask(evaluator, archive, TOLERANCES_PP, budget, seed))
    return archive, inner.ran


@pytest.mark.parametrize("budget", [1, 2, 7, 40, 100])
def test_it_evaluates_exactly_as_many_plans_as_its_budget(budget: int) -> None:
    _, ran = search(make_profile(6), budget)
    assert len(ran) == len(set(ran)) == budget


def test_it_ends_where_nothing_new_is_left() -> None:
    profile = make_profile(1)
    _, ran = search(profile, 50)
    assert set(ran) <= set(all_plans(profile))
    assert len(ran) >= 4


def test_it_uses_only_what_a_layer_supports() -> None:
    profile = make_profile(4, missing={0: ("int8", "int2"), 3: ("bf16",)})
    for plan in search(profile, 60)[1]:
        assert profile.require_plan(plan) == plan


def test_it_finds_the_same_with_the_same_seed_and_other_plans_with_another() -> None:
    profile = make_profile(6)
    assert search(profile, 60, seed=3)[1] == search(profile, 60, seed=3)[1]
    assert search(profile, 60, seed=3)[1] != search(profile, 60, seed=4)[1]


def test_it_does_not_disturb_the_global_random_numbers() -> None:
    np.random.seed(1)  # noqa: NPY002 (the global state is what is tested)
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    search(make_profile(5), 40)
    assert np.random.rand() == expected  # noqa: NPY002


def test_with_a_larger_budget_it_beats_the_additive_optimum_where_layers_interact() -> None:
    profile = make_profile(10, seed=2)
    evolved, additive = (search(profile, 300, method=m)[0] for m in (NSGA2(), ILP()))
    energies = [[a.best(t).energy_j for t in TOLERANCES_PP] for a in (evolved, additive)]
    assert sum(energies[0]) < sum(energies[1])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_plan_is_the_plan_of_its_genome(data: st.DataObject) -> None:
    profile = make_profile(5, missing={2: ("int4",)})
    genes = Genes(profile)
    genome = np.array([data.draw(st.integers(0, int(n) - 1)) for n in genes.choices])
    assert genes.genome(genes.plan(genome)) == genome.tolist()


def test_without_pymoo_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(ConfigError, match=r"needs pymoo.*pip install") as refused:
        search(make_profile(3), 10)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"population": 3}, {"seeded_share": -0.1}, {"seeded_share": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="is the default"):
        NSGA2(**settings)  # type: ignore[arg-type]
