"""What is deployed is metered as a whole, and claims a saving only where one shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import tiny

from pipeline.confirmation import certificate_record, confirmed
from pipeline.evaluation_run import as_bundled
from pipeline.judge_search import Judged
from report.plan_result import DeployedPlan, PlanResult
from report.results import RunResults
from wattbit.energy.energy_comparison import Confirmation, EnergyComparison
from wattbit.errors import MeterError
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile, Provenance
from wattbit.profiling.layer_costs import MeteredCost, ModelledCost
from wattbit.serving.bundle import load_bundle, save_bundle

SAMPLES = 10


class FakeCosts(MeteredCost):
    """Finds these energy ratios, each give or take 0.02."""

    def __init__(self, *ratios: float, device: str = "edge_7nm", failure: str = "") -> None:
        self._ratios = ratios
        self._device = device
        self._failure = failure
        self.asked: list[PrecisionPlan] = []

    provenance = property(lambda self: "estimated")
    device = property(lambda self: self._device)
    samples = property(lambda self: SAMPLES)
    confidence = property(lambda self: 0.9)

    def confirm(self, profile: ModelProfile, plans: Sequence[PrecisionPlan]) -> list[Confirmation]:
        if self._failure:
            raise MeterError(self._failure)
        self.asked += plans
        return [Confirmation(found(ratio), 0.5) for ratio, _ in zip(self._ratios, plans, strict=True)]


def found(ratio: float) -> EnergyComparison:
    return EnergyComparison(
        energy_ratio=ratio,
        energy_rel_std=0.01,
        reference_j=3.0,
        candidate_j=3.0 * ratio,
        reference_s=1.0,
        candidate_s=ratio,
        trials=12,
        repeats=3,
        ratio_low=ratio - 0.02,
        ratio_high=ratio + 0.02,
        idle_w=1.0,
    )


def judged(provenance: Provenance = "estimated") -> Judged:
    """Two deployed plans, and one tolerance at which the reference runs."""
    bundle = tiny.bundle()
    plans = tuple(replace(plan, provenance=provenance) for plan in bundle.plans)
    found = [PlanResult(p.method, p.tolerance_pp, p.plan.plan_id, saving=0.5) for p in plans]
    results = RunResults(
        "tiny",
        provenance,
        deployed=(DeployedPlan(0.5), *map(DeployedPlan, [p.tolerance_pp for p in plans], found)),
        plans=(*found, PlanResult("other", 2.0, "another", saving=0.4)),
        notes=("a note",),
    )
    profile = replace(bundle.profile, provenance=provenance)
    return Judged(results, replace(bundle, plans=plans, compared=(), profile=profile))


def test_each_deployed_plan_carries_what_it_gave_end_to_end() -> None:
    costs = FakeCosts(0.6, 1.0)
    after = confirmed(judged(), costs)
    assert costs.asked == [plan.plan for plan in judged().bundle.plans]
    assert after.results.deployed_at(0.5) is None
    first = after.results.deployed_at(tiny.DEPLOYED[0][0])
    assert first is not None
    assert first.confirmation is not None
    assert asdict(first.confirmation) == {
        "energy_j": pytest.approx(0.18),
        "reference_energy_j": pytest.approx(0.3),
        "provenance": "estimated",
        "saving": pytest.approx(0.4),
        "saving_interval": (pytest.approx(0.38), pytest.approx(0.42)),
        "interval_level": 0.9,
        "net_saving": pytest.approx(0.4),
        "additive_error": pytest.approx(0.5 / 0.6 - 1.0),
        "trials": 12,
        "reliable": True,
    }
    same, _, other = after.results.plans
    assert same.confirmation == first.confirmation
    assert other.confirmation is None
    assert RunResults.from_json(after.results.to_json()) == after.results


def test_what_was_judged_stays_as_it_was() -> None:
    before = judged()
    confirmed(before, FakeCosts(0.6, 1.0))
    assert before == judged()


def test_the_bundle_and_the_audit_log_carry_the_saving_of_the_whole_model(tmp_path: Any) -> None:
    after = confirmed(judged(), FakeCosts(0.6, 1.1))
    profile = after.bundle.profile
    for plan, ratio in zip(after.bundle.plans, (0.6, 1.1), strict=True):
        assert plan.saving == pytest.approx(1.0 - ratio)
        assert profile.saving(plan.energy_j) == pytest.approx(plan.saving)
        record = certificate_record(plan, after.results)
        assert record["saving"] == plan.saving
        assert record["confirmation"]["saving"] == plan.saving
    save_bundle(after.bundle, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").plans == after.bundle.plans
    # evaluate.py adds up layers again, and must not claim more than that.
    bad = after.bundle.plans[1]
    added_up = PlanResult("bundle", plan_id=bad.plan.plan_id, energy_j=1.0, saving=0.5)
    again = as_bundled(added_up, after.bundle)
    assert again == replace(added_up, energy_j=bad.energy_j, saving=bad.saving)
    another = PlanResult("bundle", plan_id="another")
    assert as_bundled(another, after.bundle) == as_bundled(another, None)
    unmetered = judged()
    assert "confirmation" not in certificate_record(unmetered.bundle.plans[0], unmetered.results)


def test_a_plan_that_saves_nothing_is_said_to_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        confirmed(judged(), FakeCosts(0.6, 1.05))
    good, bad = (record for record in caplog.records if record.name == "wattbit.train")
    assert good.levelno == logging.INFO
    assert "saves 40.0 % end to end (90 % interval 38.0 % to 42.0 %" in good.message
    assert bad.levelno == logging.WARNING
    assert "does not save energy end to end (saving -5.0 %" in bad.message
    assert bad.message.endswith("energy estimated")


def test_modelled_energy_is_neither_metered_nor_claimed_to_be() -> None:
    before = judged("modelled")
    costs = FakeCosts()
    assert confirmed(before, costs) is before
    assert costs.asked == []


def test_where_nothing_is_deployed_nothing_is_metered() -> None:
    before = judged()
    before = Judged(before.results, replace(before.bundle, plans=()))
    assert confirmed(before, FakeCosts(failure="was asked")) is before


@pytest.mark.parametrize(
    ("costs", "why"),
    [
        (FakeCosts(failure="the GPU was\n hot"), "the GPU was hot"),
        (
            FakeCosts(0.6, 0.6, device="another"),
            "energy now is estimated on another, the profile's estimated",
        ),
        (ModelledCost(tiny.device_model(), ()), "energy now is modelled on edge_7nm"),
    ],
)
def test_a_search_is_not_lost_because_the_meter_fails_at_its_end(costs: Any, why: str) -> None:
    before = judged()
    after = confirmed(before, costs)
    assert after.bundle == before.bundle
    assert after.results.deployed == before.results.deployed
    first, note = after.results.notes
    assert first == "a note"
    assert note.startswith("no plan was confirmed end to end: ")
    assert why in note
