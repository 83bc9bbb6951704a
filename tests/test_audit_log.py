"""The audit log: what is written and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from audit_logs import NOON, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattbit.audit import hash_chain
from wattbit.audit.hash_chain import AuditHead, verify
from wattbit.audit.log import AuditLog
from wattbit.errors import AuditError, OutputError

# --- What is written ---------------------------------------------------------------------------------------


def test_a_record_holds_number_time_event_payload_and_the_chained_hash(log_path: Path) -> None:
    with AuditLog(log_path, clock=lambda: NOON) as log:
        log.append("load", {"plan_id": "ab", "energy_j": 1.5e-7})
        log.append("energy", {"saved_j": 20.0, "provenance": "modelled"})
    previous = "0" * 64
    for number, line in enumerate(log_path.read_bytes().splitlines(), 1):
        record = json.loads(line)
        assert line == rfc8785.dumps(record)
        assert record["seq"] == number
        assert record["time"] == "2026-01-31T12:00:00.000000Z"
        digest = record.pop("hash")
        assert digest == hashlib.sha256(previous.encode() + rfc8785.dumps(record)).hexdigest()
        previous = digest
    assert previous == log.head.hash


def test_times_are_written_in_utc(log_path: Path) -> None:
    berlin = timezone(timedelta(hours=1))
    with AuditLog(log_path, clock=lambda: datetime(2026, 1, 31, 13, 0, tzinfo=berlin)) as log:
        log.append("load", {})
    assert json.loads(log_path.read_text())["time"] == "2026-01-31T12:00:00.000000Z"


def test_the_head_is_the_last_record(log_path: Path) -> None:
    with AuditLog(log_path) as log:
        assert log.head == AuditHead(0, "0" * 64)
        head = log.append("load", {})
        assert log.head == head
        assert head.sequence == 1


def test_a_record_is_in_the_file_as_soon_as_append_returns(log_path: Path) -> None:
    with AuditLog(log_path, fsync="never") as log:
        head = log.append("switch", {})
        assert verify(log_path).head == head


@pytest.mark.parametrize(("policy", "syncs"), [("always", 3), ("important", 2), ("never", 0)])
def test_records_are_forced_to_disk_as_the_policy_says(
    log_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with AuditLog(log_path, fsync=policy) as log:
        log.append("switch", {})
        log.append("rollback", {})
    # The last one is on closing.
    assert len(synced) == syncs


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    written(tmp_path / "a" / "b" / "audit.jsonl")
    assert verify(tmp_path / "a" / "b" / "audit.jsonl").ok


def test_threads_may_append_at_once(log_path: Path) -> None:
    with AuditLog(log_path, fsync="never") as log:
        threads = [
            threading.Thread(target=lambda: [log.append("switch", {"index": index}) for index in range(50)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = verify(log_path)
    assert report.ok
    assert report.head.sequence == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_whatever_json_is_logged_can_be_verified_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[dict[str, Any]]
) -> None:
    log_path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with AuditLog(log_path, fsync="never") as log:
        for payload in payloads:
            log.append("energy", payload)
    report = verify(log_path, log.head)
    assert report.ok, report.problem
    assert report.head.sequence == len(payloads)
    # Whole floats are written without a point, so that a reader has to ask for floats back.
    records = [json.loads(line, parse_int=float) for line in log_path.read_bytes().splitlines()]
    assert [record["payload"] for record in records] == payloads


# --- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["recovery", "Load", "", "login"])
def test_an_unknown_event_is_refused(log_path: Path, event: str) -> None:
    with AuditLog(log_path) as log, pytest.raises(AuditError, match="choose from load, switch"):
        log.append(event, {})


@pytest.mark.parametrize(
    "payload", [{"x": float("nan")}, {"x": object()}, {"x": 2**60}, {1: 2}, ["x"], {"x": "\ud800"}]
)
def test_a_payload_that_is_not_json_is_refused_and_leaves_the_log_as_it_was(
    log_path: Path, payload: Any
) -> None:
    with AuditLog(log_path) as log:
        head = log.append("load", {})
        before = log_path.read_bytes()
        with pytest.raises(AuditError) as caught:
            log.append("switch", payload)
        assert "\n" not in str(caught.value)
        assert (log.head, log_path.read_bytes()) == (head, before)
        log.append("switch", {})
    assert verify(log_path).ok


def test_a_record_that_is_too_long_is_refused(log_path: Path) -> None:
    with AuditLog(log_path) as log, pytest.raises(AuditError, match="log less"):
        log.append("load", {"text": "x" * hash_chain.MAX_RECORD_BYTES})
    assert log_path.read_bytes() == b""


def test_a_clock_without_a_time_zone_is_refused(log_path: Path) -> None:
    with (
        AuditLog(log_path, clock=lambda: NOON.replace(tzinfo=None)) as log,
        pytest.raises(AuditError, match="time zone"),
    ):
        log.append("load", {})


def test_an_unknown_fsync_policy_is_refused(log_path: Path) -> None:
    policy: Any = "sometimes"
    with pytest.raises(AuditError, match="fsync"):
        AuditLog(log_path, fsync=policy)


def test_a_closed_log_refuses_to_append_and_closes_twice(log_path: Path) -> None:
    log = AuditLog(log_path)
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append("load", {})


def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # A device can be endless: reading its end would never come to one.
    for bad in (tmp_path, tmp_path / "file" / "audit.jsonl", Path("/dev/null"), Path("/dev/full")):
        with pytest.raises(OutputError, match="cannot write audit log"):
            AuditLog(bad)


def test_a_second_writer_is_kept_out(log_path: Path) -> None:
    with AuditLog(log_path) as log:
        with pytest.raises(AuditError, match="open elsewhere"):
            AuditLog(log_path)
        log.append("load", {})
    with AuditLog(log_path) as log:
        assert log.head.sequence == 1


def test_a_full_disk_closes_the_log_and_reopening_accounts_for_what_was_torn(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    with AuditLog(log_path) as log:
        log.append("load", {})
        monkeypatch.setattr(os, "write", lambda file, data: real_write(file, data[:20]))
        with pytest.raises(OutputError, match="only 20 of"):
            log.append("switch", {})
        monkeypatch.undo()
        with pytest.raises(AuditError, match="closed"):
            log.append("switch", {})
    with AuditLog(log_path) as log:
        assert log.head.sequence == 2
    assert verify(log_path).ok
