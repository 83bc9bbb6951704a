"""In doubt the reference runs: outputs that are not finite, failures, disagreement, the operator."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runtimes import MakeRuntime, X, broken_kernels, events, same
from torch import Tensor

from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.shadow import ShadowWatch


def test_an_output_that_is_not_finite_is_run_again_at_the_reference(
    make_runtime: MakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    reference_answer: Tensor,
    bundle: ControllerBundle,
    tmp_path: Path,
) -> None:
    broken_kernels(monkeypatch, lambda y: y * torch.nan)
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    for _ in range(2):
        assert same(runtime(X), reference_answer)
    stats = runtime.stats
    assert (stats.samples, stats.reruns, stats.rollbacks) == (32, 2, 0)
    assert stats.energy_saved_j == pytest.approx(-32 * bundle.plans[1].energy_j)
    runtime.close()
    reruns = [event for event in events(tmp_path / "audit.jsonl") if event["event"] == "re-run"]
    assert [event["payload"]["samples"] for event in reruns] == [16, 16]


def test_a_nan_in_the_input_is_answered_as_the_model_answers_it(make_runtime: MakeRuntime) -> None:
    x = X.clone()
    x[3, 0, 2, 2] = torch.nan
    output = make_runtime()(x).detach()
    expected = tiny.conv_model()(x).detach()
    torch.testing.assert_close(output, expected, equal_nan=True)
    assert output[3].isnan().all()


def test_a_plan_that_fails_is_replaced_by_the_reference(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, reference_answer: Tensor, tmp_path: Path
) -> None:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("kernel lost\nits way")

    broken_kernels(monkeypatch, fail)
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    for _ in range(2):
        assert same(runtime(X), reference_answer)
    assert (runtime.stats.reruns, runtime.stats.rollbacks) == (1, 1)
    assert set(runtime.plan.values()) == {"fp32"}
    rollback = events(tmp_path / "audit.jsonl")[-1]
    assert rollback["event"] == "rollback"
    assert rollback["payload"]["reason"] == "the plan failed: RuntimeError: kernel lost its way"


def test_disagreement_in_the_shadow_rolls_back(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, reference_answer: Tensor, tmp_path: Path
) -> None:
    broken_kernels(monkeypatch, lambda y: y.roll(1, -1))
    runtime = make_runtime(shadow_share=1.0, audit_path=tmp_path / "audit.jsonl")
    batches = 0
    while not runtime.stats.rollbacks:
        assert same(runtime(X), reference_answer)  # a shadowed batch gets the better answer
        batches += 1
        assert batches < 50
    stats = runtime.stats
    assert stats.shadow_samples == stats.samples == 16 * batches
    assert stats.disagreements > 0.007 * stats.samples
    assert stats.energy_saved_j < 0
    assert same(runtime(X), reference_answer)
    assert runtime.stats.shadow_samples == stats.shadow_samples
    record = events(tmp_path / "audit.jsonl")[-1]
    assert re.fullmatch(r"disagreement with the reference is above 0\.\d+ pp", record["payload"]["reason"])
    assert record["payload"]["layers_changed"] == ["stem", "depthwise", "pointwise", "head"]


def test_a_plan_that_agrees_goes_on_running(
    make_runtime: MakeRuntime, quantized_answer: Tensor, bundle: ControllerBundle
) -> None:
    runtime = make_runtime(shadow_share=0.25)
    for _ in range(40):
        runtime(X)
    stats = runtime.stats
    assert (stats.shadow_samples, stats.disagreements, stats.rollbacks) == (160, 0, 0)
    saved_j = 40 * 16 * (bundle.profile.reference_energy_j - bundle.plans[1].energy_j)
    shadows_j = 10 * 16 * bundle.profile.reference_energy_j
    assert stats.energy_saved_j == pytest.approx(saved_j - shadows_j)


@pytest.mark.parametrize("failing", ["observe", "due"])
def test_a_monitor_that_fails_leads_to_the_reference(
    make_runtime: MakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    quantized_answer: Tensor,
    reference_answer: Tensor,
    failing: str,
) -> None:
    runtime = make_runtime(shadow_share=1.0)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("no evidence")

    monkeypatch.setattr(ShadowWatch, failing, fail)
    first = runtime(X)
    assert same(first, quantized_answer) or same(first, reference_answer)
    assert runtime.stats.rollbacks == 1
    assert same(runtime(X), reference_answer)
    assert runtime.stats.samples == 32


def test_a_shadow_run_that_fails_leads_to_the_reference_and_the_answer_is_kept(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, quantized_answer: Tensor
) -> None:
    runtime = make_runtime(shadow_share=1.0, example=X[:2])
    run = SwitchableModel.run

    def fails_at_reference(self: SwitchableModel, batch: Any, plan: Any = None) -> Any:
        if plan == self.reference_plan:
            raise MemoryError("no room for the shadow")
        return run(self, batch, plan)

    monkeypatch.setattr(SwitchableModel, "run", fails_at_reference)
    assert same(runtime(X), quantized_answer)
    assert runtime.stats.rollbacks == 1


def test_the_operator_rolls_back_and_restores(
    make_runtime: MakeRuntime, quantized_answer: Tensor, reference_answer: Tensor, tmp_path: Path
) -> None:
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    runtime(X)
    runtime.restore()  # nothing to restore, nothing to log
    runtime.rollback("maintenance")
    runtime.rollback("maintenance, again")
    assert same(runtime(X), reference_answer)
    assert runtime.stats.rollbacks == 1
    runtime.restore()
    assert same(runtime(X), quantized_answer)
    runtime.close()
    logged = events(tmp_path / "audit.jsonl")
    assert [event["event"] for event in logged] == ["load", "rollback", "switch", "energy"]
    assert logged[2]["payload"]["reason"] == "restored by the operator"


def test_evidence_is_fresh_after_a_restoration(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = True
    broken_kernels(monkeypatch, lambda y: y.roll(1, -1) if wrong else y)
    runtime = make_runtime(shadow_share=1.0)
    while not runtime.stats.rollbacks:
        runtime(X)
        assert runtime.stats.samples < 50 * len(X)
    wrong = False
    runtime.restore()
    runtime(X)
    assert runtime.stats.rollbacks == 1


def test_rollbacks_are_logged_for_people(make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="wattbit.serving.runtime")
    make_runtime().rollback("a test")
    assert caplog.messages == ["rolled back to the reference: a test"]
