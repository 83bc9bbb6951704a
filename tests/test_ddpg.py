"""DDPG: it keeps its budget, ends even when it repeats itself, and its noise decays as promised."""

from functools import partial

import pytest
from synthetic import FormulaEvaluator, make_profile

from agents.archive import Archive, ArchivingEvaluator
from agents.ddpg import DDPG, DecayingNoise
from agents.search_method import SearchTask
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

MAKE_ENV = partial(LayerPrecisionEnv, gate=SearchGate(0.5), tolerance_range_pp=(0.25, 5.0))


def search(profile: ModelProfile, budget: int, seed: int = 0, enforced: bool = False) -> list[PrecisionPlan]:
    """The plans run."""
    inner = FormulaEvaluator(profile)
    archive = Archive(FormulaEvaluator(profile).evaluate(profile.reference_plan), SearchGate())
    evaluator = ArchivingEvaluator(inner, "ddpg", (archive,), budget if enforced else None)
    method = DDPG(make_env=MAKE_ENV)
    method.search(SearchTask(evaluator, archive, (1.0,), budget, seed))
    assert method.model is not None
    return inner.ran


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("budget", [1, 3, 25])
def test_it_evaluates_no_more_plans_than_its_budget(budget: int, enforced: bool) -> None:
    assert 1 <= len(search(make_profile(6), budget, enforced=enforced)) <= budget


def test_it_ends_where_nothing_new_is_left() -> None:
    assert len(search(make_profile(1), 20)) <= 5


def test_it_uses_only_what_a_layer_supports() -> None:
    profile = make_profile(4, missing={0: ("int8", "int2"), 3: ("bf16",)})
    for plan in search(profile, 15):
        assert profile.require_plan(plan) == plan


def test_it_finds_the_same_with_the_same_seed_and_other_plans_with_another() -> None:
    profile = make_profile(5)
    assert search(profile, 12, seed=3) == search(profile, 12, seed=3)
    assert search(profile, 12, seed=3) != search(profile, 12, seed=4)


def test_noise_stays_during_the_warm_up_and_decays_after_each_episode_that_follows() -> None:
    noise = DecayingNoise(0.8, 0.5, constant=2, seed=0)
    seen = []
    for _ in range(5):
        seen.append(noise.deviation)
        noise.reset()
    assert seen == [0.8, 0.8, 0.8, 0.4, 0.2]
    assert noise().shape == (1,)


@pytest.mark.parametrize("settings", [{"warm_up_share": 0.0}, {"noise_left": 1.1}])
def test_shares_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="at most 1"):
        DDPG(make_env=MAKE_ENV, **settings)  # type: ignore[arg-type]
