"""What a plan promises: nothing if it is known or saves nothing, more the likelier it passes."""

import numpy as np
import pytest

from agents.archive import Archive
from agents.baselines import greedy_path
from agents.surrogate.acquisition import Acquisition
from agents.surrogate.drop_surrogate import DropSurrogate
from envs.gate import SearchGate
from envs.synthetic import SyntheticEvaluator

TOLERANCES = (0.5, 2.0)


@pytest.fixture
def evaluator() -> SyntheticEvaluator:
    return SyntheticEvaluator(10, seed=2)


@pytest.fixture
def archive(evaluator: SyntheticEvaluator) -> Archive:
    made = Archive(evaluator.evaluate(evaluator.profile.reference_plan), SearchGate(0.5))
    for plan in greedy_path(evaluator.profile):
        made.add(evaluator.evaluate(plan), "greedy")
    return made


@pytest.fixture
def acquisition(evaluator: SyntheticEvaluator, archive: Archive) -> Acquisition:
    surrogate = DropSurrogate(evaluator.profile, archive.gate).fit(list(archive))
    return Acquisition(surrogate, archive, TOLERANCES)


def drawn(count: int = 500) -> "np.ndarray[tuple[int, int], np.dtype[np.intp]]":
    return np.random.default_rng(0).integers(4, size=(count, 10)).astype(np.intp)


def test_a_known_plan_promises_nothing(acquisition: Acquisition, archive: Archive) -> None:
    known = acquisition.surrogate.arrays.indices([outcome.plan for outcome in archive])
    assert not acquisition.values(known).any()


def test_a_plan_that_costs_more_than_the_best_known_promises_nothing(
    acquisition: Acquisition, archive: Archive
) -> None:
    rows = drawn()
    energies_j, values = acquisition.surrogate.arrays.energies_j(rows), acquisition.values(rows)
    for column, tolerance in enumerate(TOLERANCES):
        dearer = energies_j >= archive.best(tolerance).energy_j
        assert not values[dearer, column].any()
    assert values.any()
    assert (values >= 0).all()


def test_a_climb_ends_at_an_unknown_plan_that_promises_at_least_as_much_as_its_start(
    acquisition: Acquisition, archive: Archive
) -> None:
    rng = np.random.default_rng(1)
    for column in range(len(TOLERANCES)):
        for start in drawn(5):
            plan, value = acquisition.climb(start, column, rng)
            assert value >= acquisition.values(start[None])[0, column]
            assert value == pytest.approx(acquisition.values(plan[None])[0, column])
            assert acquisition.surrogate.arrays.plans(plan[None])[0] not in archive


def test_what_was_chosen_promises_nothing_any_more(acquisition: Acquisition) -> None:
    rows = drawn()
    plan = rows[acquisition.values(rows)[:, 1].argmax()]
    assert acquisition.values(plan[None])[0, 1] > 0.0
    acquisition.exclude(plan)
    assert not acquisition.values(plan[None]).any()
