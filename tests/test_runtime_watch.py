"""The plan is watched by default, at a stated cost, against what its certificate leaves room for."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runtimes import TOLERANCE_PP, MakeRuntime, X, broken_kernels
from torch import Tensor

from pipeline.split_evaluator import SplitEvaluator
from wattbit.errors import GuardrailError
from wattbit.judging.noninferiority import PairedCounts
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle
from wattbit.serving.controller import PrecisionController
from wattbit.serving.monitor import EProcess
from wattbit.serving.runtime import PrecisionRuntime
from wattbit.serving.shadow import ShadowWatch, certified_limit_pp


def test_a_plan_that_answers_zeros_is_found_without_any_setting(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_kernels(monkeypatch, lambda y: y * 0.0)
    runtime = make_runtime()
    batches = 0
    while not runtime.stats.rollbacks:
        runtime(X)
        batches += 1
        assert batches < 1000


def test_what_watching_costs_by_default_is_taken_off_the_energy_saved(
    make_runtime: MakeRuntime, bundle: ControllerBundle
) -> None:
    runtime = make_runtime()
    for _ in range(200):
        runtime(X[:2])
    assert runtime.stats.shadow_samples == 4
    reference_j, plan_j = bundle.profile.reference_energy_j, bundle.plans[1].energy_j
    assert runtime.stats.energy_saved_j == pytest.approx(400 * (reference_j - plan_j) - 4 * reference_j)


def test_the_configuration_says_what_the_constructor_does() -> None:
    settings = yaml.safe_load(
        (Path(__file__).parents[1] / "conf" / "runtime" / "default.yaml").read_text(encoding="utf-8")
    )
    settings.pop("_target_")
    defaults = inspect.signature(PrecisionRuntime).parameters
    assert {name: defaults[name].default for name in settings} == settings


def with_counts(bundle: ControllerBundle, counts: PairedCounts | None, seen: int | None) -> ControllerBundle:
    """``bundle`` whose second plan was certified with ``counts``, ``seen`` predictions being different."""
    plan = bundle.plans[1]
    certificate = bundle.certificates[1]
    judgement = replace(certificate.judgements[plan.plan.plan_id], counts=counts)
    return replace(
        bundle,
        plans=(bundle.plans[0], replace(plan, disagreements=seen)),
        certificates=(
            bundle.certificates[0],
            replace(certificate, judgements={plan.plan.plan_id: judgement}),
        ),
    )


@pytest.mark.parametrize(
    ("counts", "seen", "limit_pp"),
    [
        ((2000, 12, 8), 20, 1.3499),  # Clopper and Pearson's bound: scipy's beta.ppf(0.9, 21, 1980)
        ((2000, 12, 8), None, 1.3499),
        ((2000, 0, 0), 20, 1.3499),  # wrong in two ways: no change of right and wrong, but disagreement
        ((2000, 12, 8), 3, 1.3499),  # fewer than changed between right and wrong cannot be
        ((100_000, 0, 0), 0, 0.1),
    ],
)
def test_the_limit_is_what_the_certificate_leaves_room_for(
    bundle: ControllerBundle, counts: tuple[int, int, int], seen: int | None, limit_pp: float
) -> None:
    made = with_counts(bundle, PairedCounts(*counts), seen)
    assert certified_limit_pp(made, made.plans[1]) == pytest.approx(limit_pp, abs=1e-3)
    assert certified_limit_pp(made, None) == 0.1


def test_a_limit_that_no_certificate_gives_must_be_given(
    bundle: ControllerBundle, conv_model: torch.nn.Module
) -> None:
    controller = PrecisionController(with_counts(bundle, None, None))
    with pytest.raises(GuardrailError, match=r"has no counts, .* give rollback_limit_pp"):
        PrecisionRuntime(controller, conv_model, tolerance_pp=TOLERANCE_PP)
    with PrecisionRuntime(
        controller, conv_model, tolerance_pp=TOLERANCE_PP, rollback_limit_pp=1.0
    ) as runtime:
        runtime(X)


class Recorded:
    """A model that answers what was recorded."""

    reference_plan = PrecisionPlan({"layer": "fp32"})

    def logits(self, _: Any, plan: PrecisionPlan) -> Tensor:
        """The second sample is answered wrong in two ways, the third is right at the reference only."""
        answers = [0, 1, 0, 0] if plan == self.reference_plan else [0, 2, 1, 0]
        return torch.eye(3)[answers]


def test_disagreements_are_counted_on_certify_and_kept_in_the_bundle(
    bundle: ControllerBundle, tmp_path: Path
) -> None:
    model: Any = Recorded()
    evaluator = SplitEvaluator(model, [], torch.zeros(4, dtype=torch.int64))
    plan = PrecisionPlan({"layer": "int4"})
    assert evaluator.disagreements(plan) == 2
    assert evaluator.counts(plan) == PairedCounts(4, 1, 0)
    assert evaluator.disagreements(model.reference_plan) == 0
    save_bundle(with_counts(bundle, PairedCounts(2048, 0, 0), 7), tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").plans[1].disagreements == 7


def alarms(rate: float, limit_pp: float, samples: int, runs: int, window: int = 32) -> list[int]:
    """After how many samples each run of a plan that disagrees at ``rate`` is alarmed; those that are."""
    found = []
    for seed in range(runs):
        watch = ShadowWatch(1.0, limit_pp, 0.05, window)
        for index, disagreed in enumerate(
            np.random.default_rng(seed).random((samples // window, window)) < rate, 1
        ):
            if watch.observe(disagreed.tolist()):
                found.append(index * window)
                break
    return found


def test_an_honest_plan_that_disagrees_in_one_percent_stays(bundle: ControllerBundle) -> None:
    limits = [
        certified_limit_pp(made, made.plans[1])
        for seen in np.random.default_rng(0).binomial(4000, 0.01, size=20)
        for made in [with_counts(bundle, PairedCounts(4000, 0, 0), int(seen))]
    ]
    alarmed = [alarms(0.01, limit_pp, 20_000, 1) for limit_pp in limits]
    assert sum(map(len, alarmed)) <= 2


def test_a_plan_that_has_become_worse_is_found_soon() -> None:
    assert np.median(alarms(0.005 + 0.02, 0.6, 4000, 41)) <= 300
    assert np.median(alarms(0.01 + 0.05, 1.3, 4000, 41)) <= 100


@pytest.mark.parametrize(("window", "most"), [(1, 1.0), (32, 0.2), (128, 0.05)])
def test_bursts_shorter_than_the_window_do_not_break_the_promise(window: int, most: float) -> None:
    # Bursts of 8 samples of which half disagree, one sample in a hundred in one: 0.6 % in all, limit 0.7 %.
    alarmed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        watch = ShadowWatch(1.0, 0.7, 0.05, window)
        burst = np.repeat(rng.random(20_000 // 8) < 0.01, 8)
        disagreed = rng.random(burst.size) < np.where(burst, 0.5, 0.001)
        alarmed += any(watch.observe([one]) for one in disagreed.tolist())
    assert alarmed <= most * 40
    assert window > 1 or alarmed > 20, "a window of one sample takes a burst for a change"


def test_a_window_gathers_batches_until_it_is_full() -> None:
    watch, whole = ShadowWatch(1.0, 10.0, 0.05, window=32), EProcess(0.1)
    full = 0
    while not whole.alarm(0.05):
        assert not any(watch.observe([True, False] * 4) for _ in range(3))
        whole.update(0.5, 32)
        assert watch.observe([True, False] * 4) == whole.alarm(0.05)
        full += 1
    assert full > 1
    with pytest.raises(GuardrailError, match="shadow_window is 0, must be at least 1"):
        ShadowWatch(1.0, 1.0, 0.05, 0)
