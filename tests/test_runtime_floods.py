"""A plan that keeps failing is rolled back, and no client can flood the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from audit_logs import records_of
from runtimes import MakeRuntime, X, broken_kernels, events, same
from torch import Tensor

from wattbit.audit.hash_chain import verify
from wattbit.audit.log import AuditLog
from wattbit.errors import GuardrailError
from wattbit.serving.finiteness import FailureLimit, is_finite, plan_at_fault


def test_a_plan_whose_output_is_never_finite_is_rolled_back_after_a_stated_few(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, reference_answer: Tensor, log_path: Path
) -> None:
    broken_kernels(monkeypatch, lambda y: y * torch.nan)
    runtime = make_runtime(audit_path=log_path, max_reruns=4)
    for _ in range(20):
        assert same(runtime(X), reference_answer)
    assert (runtime.stats.reruns, runtime.stats.rollbacks) == (4, 1)
    assert runtime.rollback_reason == "the plan's output was not finite too often"
    runtime.restore()
    for _ in range(3):
        assert same(runtime(X), reference_answer)
    assert runtime.stats.rollbacks == 1, "after a restoration the count begins anew"
    runtime.close()
    counts = [e["payload"]["count"] for e in events(log_path) if e["event"] == "re-run"]
    assert counts == [1, 2, 4, 7]


def test_an_input_that_has_no_finite_answer_is_not_held_against_the_plan(
    make_runtime: MakeRuntime, log_path: Path
) -> None:
    x = X[:1].clone()
    x[0, 0, 0, 0] = torch.nan
    runtime = make_runtime(audit_path=log_path)
    for _ in range(300):
        runtime(x)
    assert (runtime.stats.reruns, runtime.stats.rollbacks) == (300, 0)
    runtime.close()
    reruns = [event for event in events(log_path) if event["event"] == "re-run"]
    assert {event["payload"]["reason"] for event in reruns} == {"output not finite at the reference either"}
    assert [event["payload"]["count"] for event in reruns] == [*(2**k for k in range(9)), 300]


def test_one_bad_sample_does_not_excuse_a_plan_that_spoils_the_others() -> None:
    expected = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    assert not plan_at_fault(expected.clone(), expected)
    assert plan_at_fault(torch.full((2, 2), torch.nan), expected)
    assert plan_at_fault(torch.full((2, 3), torch.nan), expected)
    assert not plan_at_fault(expected.clone(), torch.full((2, 2), torch.inf))


def test_every_tensor_that_is_returned_has_to_be_finite() -> None:
    fine, bad = torch.ones(2, 3), torch.tensor([1.0, torch.inf])
    assert is_finite((fine, torch.ones(2, dtype=torch.int64)))
    assert not is_finite((fine, bad))
    assert not is_finite({"logits": fine, "hidden": [fine, bad]})

    class Own:
        logits = fine

    assert is_finite(Own())
    Own.logits = bad
    assert not is_finite(Own())


def test_failures_far_apart_are_not_too_many_and_close_ones_are() -> None:
    limit = FailureLimit(3)
    seldom = [limit.add(number % 500 == 0) for number in range(5000)]
    assert not any(seldom)
    often = FailureLimit(3)
    assert [often.add(number % 400 == 0) for number in range(801)].count(True) == 1
    assert [FailureLimit(1).add(failed) for failed in (False, True)] == [False, True]
    with pytest.raises(GuardrailError, match="max_reruns is 0, must be at least 1"):
        FailureLimit(0)


@pytest.mark.parametrize("kinds", [1, 3])
def test_ten_thousand_repetitions_leave_a_few_records_and_the_count(log_path: Path, kinds: int) -> None:
    with AuditLog(log_path) as log:
        for number in range(10_000):
            log.append("re-run", {"reason": f"reason {number % kinds}"})
    assert verify(log_path).ok
    records = records_of(log_path)
    assert len(records) <= 15 * kinds
    last = {record["payload"]["reason"]: record["payload"]["count"] for record in records}
    assert sum(last.values()) == 10_000


def test_reasons_without_end_cost_neither_memory_nor_disk(log_path: Path) -> None:
    with AuditLog(log_path) as log:
        for number in range(10_000):
            log.append("re-run", {"reason": f"made up by a client: {number}"})
    assert len(records_of(log_path)) <= 64 + 15
    assert verify(log_path).ok


def test_a_count_survives_a_kill_by_half(log_path: Path) -> None:
    killed = log_path.with_name("killed.jsonl")
    with AuditLog(log_path) as log:
        for _ in range(1000):
            log.append("re-run", {"reason": "x"})
        killed.write_bytes(log_path.read_bytes())
    assert records_of(killed)[-1]["payload"]["count"] == 512
    with AuditLog(killed) as again:
        again.append("re-run", {"reason": "x"})
    assert verify(killed).ok


def test_what_is_not_repeated_by_clients_is_recorded_each_time(log_path: Path) -> None:
    with AuditLog(log_path) as log:
        for event in ("load", "switch", "rollback", "certificate", "energy") * 3:
            log.append(event, {"reason": "x"})
    assert [record["event"] for record in records_of(log_path)].count("rollback") == 3


def test_a_log_that_cannot_take_the_last_counts_is_closed_all_the_same(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(log_path)
    for _ in range(3):
        log.append("re-run", {"reason": "x"})

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wattbit.audit.log.os.write", fail)
    with pytest.raises(Exception, match="No space left on device"):
        log.close()
    log.close()
