"""Running plans: each once, against the reference, and what is not a number is wrong."""

import math

import pytest
import tiny
import torch
from synthetic import FormulaEvaluator, StubModel, make_profile, make_split
from torch import Tensor

from envs.evaluators.evaluator import Outcome
from envs.evaluators.plan_evaluator import PlanEvaluator, correct
from wattbit.errors import DataError, ModelError, PlanError
from wattbit.execution.switchable import SwitchableModel
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

PROFILE = make_profile(3, missing={1: ("int2",)})
NARROW = PROFILE.reference_plan.replace(**{"block.0": "int4"})


def stub_evaluator(stub: StubModel, samples: int = 20) -> PlanEvaluator:
    split = make_split(samples)
    return PlanEvaluator(stub.as_model(), PROFILE, split.inputs, split.labels, batch_size=8)


def test_the_reference_loses_nothing_against_itself() -> None:
    evaluator = stub_evaluator(StubModel(PROFILE, lambda plan: 5))
    outcome = evaluator.evaluate(PROFILE.reference_plan)
    assert outcome.counts == PairedCounts(20, 0, 0)
    assert outcome.drop_pp == 0.0
    assert outcome.divergence == 0.0
    assert outcome.energy_j == PROFILE.reference_energy_j
    assert evaluator.reference_accuracy == 0.75
    assert evaluator.samples == 20


def test_outcomes_are_paired_with_the_reference_on_the_same_samples() -> None:
    evaluator = stub_evaluator(StubModel(PROFILE, lambda plan: 5 if plan == PROFILE.reference_plan else 2))
    outcome = evaluator.evaluate(NARROW)
    assert outcome.counts == PairedCounts(20, 0, 3)
    assert outcome.drop_pp == -15.0
    assert outcome.divergence > 0.0
    assert outcome.energy_j == PROFILE.plan_energy_j(NARROW)
    assert outcome.latency_ms == PROFILE.plan_latency_ms(NARROW)


def test_a_plan_is_run_once_whatever_the_order_of_its_layers() -> None:
    stub = StubModel(PROFILE, lambda plan: 1)
    evaluator = stub_evaluator(stub)
    backwards = PrecisionPlan(dict(reversed(list(NARROW.items()))))
    assert evaluator.evaluate(backwards) is evaluator.evaluate(NARROW)
    assert stub.asked.count(NARROW) == 1
    assert evaluator.evaluations == 1
    assert tuple(evaluator.evaluate(backwards).plan) == PROFILE.layer_names
    assert evaluator.profile is PROFILE


def test_a_list_of_plans_gives_what_each_gives_by_itself_and_runs_each_once() -> None:
    stub = StubModel(PROFILE, lambda plan: len(set(plan.values())))
    evaluator, single = stub_evaluator(stub), stub_evaluator(StubModel(PROFILE, stub.lost))
    wide = PROFILE.reference_plan.replace(**{"block.2": "bf16"})
    plans = [NARROW, PROFILE.reference_plan, wide, NARROW]
    assert evaluator.evaluate_all(plans) == [single.evaluate(plan) for plan in plans]
    assert evaluator.evaluations == 3
    assert evaluator.evaluate_all([]) == []
    asked = len(stub.asked)
    assert evaluator.evaluate_all([wide, NARROW]) == [single.evaluate(wide), single.evaluate(NARROW)]
    assert len(stub.asked) == asked


def test_a_list_with_a_plan_for_another_model_is_refused_before_anything_runs() -> None:
    stub = StubModel(PROFILE, lambda plan: 0)
    evaluator = stub_evaluator(stub)
    with pytest.raises(PlanError, match="'elsewhere'"):
        evaluator.evaluate_all([NARROW, PrecisionPlan({"elsewhere": "int8"})])
    assert evaluator.evaluations == 0
    assert NARROW not in stub.asked


def test_what_an_earlier_run_knew_is_not_run_again() -> None:
    stub, split = StubModel(PROFILE, lambda plan: 1), make_split(20)
    outcome = stub_evaluator(StubModel(PROFILE, lambda plan: 7)).evaluate(NARROW)
    evaluator = PlanEvaluator(
        stub.as_model(), PROFILE, split.inputs, split.labels, known={outcome.plan: outcome}
    )
    assert evaluator.evaluations == 1
    assert evaluator.evaluate(NARROW) is outcome
    assert NARROW not in stub.asked


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PrecisionPlan({"elsewhere": "int8"}), "'elsewhere'"),
        (PROFILE.reference_plan.replace(**{"block.1": "int2"}), "'block.1' cannot run at 'int2'"),
        (PrecisionPlan({"block.0": "int8"}), "leaves out layer 'block.1'"),
    ],
)
def test_a_plan_for_another_model_is_refused_and_not_counted(plan: PrecisionPlan, message: str) -> None:
    evaluator = stub_evaluator(StubModel(PROFILE, lambda plan: 0))
    with pytest.raises(PlanError, match=message):
        evaluator.evaluate(plan)
    assert evaluator.evaluations == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_counts_as_wrong(value: float) -> None:
    class Broken(StubModel):
        def logits(self, batches: object, plan: PrecisionPlan) -> Tensor:
            logits = torch.tensor([[4.0, 0.0]]).repeat(20, 1)
            if plan != PROFILE.reference_plan:
                logits[:3, 1] = value  # with -inf, class 0 still has the largest logit
            return logits

    outcome = stub_evaluator(Broken(PROFILE, lambda plan: 0)).evaluate(NARROW)
    assert outcome.counts == PairedCounts(20, 3, 0)
    assert math.isfinite(outcome.divergence)
    assert outcome.divergence > 10.0


def test_correct_needs_the_right_class_and_finite_logits() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.inf, 0.0], [0.0, math.nan]])
    assert correct(logits, torch.tensor([0, 0, 0, 0])).tolist() == [True, False, False, False]


def test_labels_that_do_not_fit_the_samples_are_refused() -> None:
    split = make_split(20)
    with pytest.raises(DataError, match="1 labels for 20 samples"):
        PlanEvaluator(StubModel(PROFILE, lambda plan: 0).as_model(), PROFILE, split.inputs, split.labels[:1])


def test_a_reference_that_is_not_finite_is_refused() -> None:
    class Broken(StubModel):
        def logits(self, batches: object, plan: PrecisionPlan) -> Tensor:
            return torch.full((20, 2), math.nan)

    with pytest.raises(ModelError, match="the reference output on the search split holds NaN"):
        stub_evaluator(Broken(PROFILE, lambda plan: 0))


def test_a_real_model_gives_the_outcomes_that_running_it_by_hand_gives(
    switchable: SwitchableModel, conv_inputs: Tensor, profile: ModelProfile
) -> None:
    labels = switchable.logits([conv_inputs], switchable.reference_plan).argmax(1)
    labels[:6] = (labels[:6] + 1) % tiny.CLASSES
    evaluator = PlanEvaluator(switchable, profile, conv_inputs, labels, batch_size=24)
    plan = PrecisionPlan.uniform(profile.layer_names, "int4")
    outcome = evaluator.evaluate(plan)
    by_hand = switchable.logits([conv_inputs], plan).argmax(1) == labels
    reference = switchable.logits([conv_inputs], switchable.reference_plan).argmax(1) == labels
    assert outcome.counts == PairedCounts.from_correct(reference.numpy(), by_hand.numpy())
    assert evaluator.reference_accuracy == pytest.approx(1 - 6 / len(labels))


def test_plans_of_a_real_model_share_work_and_have_the_outcomes_they_have_alone(
    switchable: SwitchableModel, conv_inputs: Tensor, profile: ModelProfile
) -> None:
    labels = torch.arange(len(conv_inputs)) % tiny.CLASSES
    together, single = (
        PlanEvaluator(switchable, profile, conv_inputs, labels, batch_size=24) for _ in range(2)
    )
    first, *_, last = profile.layer_names
    plans = [
        PrecisionPlan.uniform(profile.layer_names, "int4").replace(**{first: a, last: b})
        for a in ("fp32", "int8")
        for b in ("int8", "bf16", "mxfp4")
    ]
    assert together.evaluate_all(plans) == [single.evaluate(plan) for plan in plans]
    assert together.sharing.refusal is None
    assert together.sharing.layer_executions == 3 * 2 * (4 + 1 + 1)
    assert single.sharing.layer_executions == single.sharing.plain_layer_executions == 3 * 6 * 4
    assert "cannot be traced" in str(stub_evaluator(StubModel(PROFILE, lambda plan: 0)).sharing.refusal)


def test_the_made_up_evaluator_has_interactions_that_no_sum_of_sensitivities_shows() -> None:
    profile = make_profile(2)
    evaluator = FormulaEvaluator(profile)
    worst = PrecisionPlan.uniform(profile.layer_names, "int2")
    same = PrecisionPlan.uniform(profile.layer_names, "int8")
    assert evaluator.divergence(worst) > profile.plan_sensitivity(worst)
    assert evaluator.divergence(same) < profile.plan_sensitivity(same)
    assert isinstance(evaluator.evaluate(same), Outcome)
