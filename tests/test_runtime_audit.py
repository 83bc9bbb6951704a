"""What a runtime does is in the audit log, and a log that fails leads to the reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import unpatched
from audit_logs import break_log
from runtimes import MakeRuntime, X, events, same
from torch import Tensor

from wattbit.audit.hash_chain import verify
from wattbit.errors import AuditError, OutputError
from wattbit.execution.switchable import SwitchableModel
from wattbit.serving.bundle import ControllerBundle


def test_the_audit_log_tells_the_story_and_verifies(
    make_runtime: MakeRuntime, bundle: ControllerBundle, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    runtime = make_runtime(audit_path=str(path))
    for _ in range(3):
        runtime(X)
    saved_j = runtime.stats.energy_saved_j
    runtime.close()
    assert verify(path).ok
    load, energy = events(path)
    assert (load["event"], energy["event"]) == ("load", "energy")
    assert load["payload"] == {
        "reason": "cheapest plan certified at 10 pp",
        "plan_id": bundle.plans[1].plan.plan_id,
        "model_fingerprint": bundle.model_fingerprint,
        "layers_changed": list(bundle.profile.layer_names),
        "tolerance_pp": 10.0,
        "drop_pp": bundle.plans[1].drop_pp,
        "saving": bundle.plans[1].saving,
        "provenance": "modelled",
    }
    assert energy["payload"] == {"energy_saved_j": saved_j, "provenance": "modelled", "samples": 48}


def test_a_log_that_goes_on_is_verified_as_one(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        runtime = make_runtime(audit_path=path)
        runtime(X)
        runtime.close()
    assert [event["seq"] for event in events(path)] == [1, 2, 3, 4]
    assert verify(path).ok


def test_a_log_that_cannot_be_opened_is_found_at_the_start(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a log\n", encoding="utf-8")
    with pytest.raises(AuditError):
        make_runtime(audit_path=tmp_path / "file")
    with pytest.raises(OutputError):
        make_runtime(audit_path=tmp_path / "file" / "audit.jsonl")


def test_a_log_that_fails_at_load_keeps_the_plan_from_running(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, reference_answer: Tensor, tmp_path: Path
) -> None:
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    break_log(monkeypatch, 0)
    for _ in range(3):
        assert same(runtime(X), reference_answer)
    assert (runtime.stats.samples, runtime.stats.rollbacks) == (48, 1)


def test_a_log_that_fails_later_does_not_break_inference_but_leads_to_the_reference(
    make_runtime: MakeRuntime,
    conv_model: tiny.ConvNet,
    monkeypatch: pytest.MonkeyPatch,
    reference_answer: Tensor,
    tmp_path: Path,
) -> None:
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    break_log(monkeypatch, 1)
    runtime(X)
    run = SwitchableModel.run

    def broken(self: SwitchableModel, batch: Any, plan: Any = None) -> Any:
        return run(self, batch, plan) * (1 if plan == self.reference_plan else torch.nan)

    monkeypatch.setattr(SwitchableModel, "run", broken)
    assert same(runtime(X), reference_answer)  # run again, which cannot be logged
    assert runtime.stats.rollbacks == 1
    assert same(runtime(X), reference_answer)
    with pytest.raises(
        AuditError, match="the audit log failed, so the reference stays; load the runtime again"
    ):
        runtime.restore()
    assert same(runtime(X), reference_answer)
    runtime.close()
    assert unpatched(conv_model)
    assert verify(tmp_path / "audit.jsonl").ok


def test_restoring_is_refused_if_that_itself_cannot_be_logged(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, reference_answer: Tensor, tmp_path: Path
) -> None:
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    runtime(X)
    runtime.rollback("a test")
    break_log(monkeypatch, 0)
    with pytest.raises(AuditError, match="the reference stays"):
        runtime.restore()
    assert same(runtime(X), reference_answer)


def test_a_log_that_cannot_be_closed_says_so_after_the_model_is_back(
    make_runtime: MakeRuntime, conv_model: tiny.ConvNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = make_runtime(audit_path=tmp_path / "audit.jsonl")
    runtime(X)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        runtime.close()
    assert unpatched(conv_model)
