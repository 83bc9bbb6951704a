"""An audit log goes on after a restart, and crashes are accounted for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from audit_logs import written

from wattbit.audit.hash_chain import MAX_RECORD_BYTES, verify
from wattbit.audit.log import AuditLog
from wattbit.errors import AuditError


def test_a_log_goes_on_after_a_restart(log_path: Path) -> None:
    heads = written(log_path, 3)
    with AuditLog(log_path) as log:
        assert log.head == heads[-1]
        log.append("load", {})
    report = verify(log_path, heads[-1])
    assert report.ok
    assert report.head.sequence == 4
    assert report.after_head == 1


def test_a_long_log_goes_on_though_only_its_end_is_read(log_path: Path) -> None:
    head = written(log_path, 40, note="x" * (MAX_RECORD_BYTES // 3))[-1]
    assert log_path.stat().st_size > 5 * 2 * MAX_RECORD_BYTES
    with AuditLog(log_path) as log:
        assert log.head == head
        log.append("load", {})
    assert verify(log_path).head.sequence == 41


@pytest.mark.parametrize("keep", [1, 9, 40, -2])
def test_a_line_torn_by_a_crash_stays_and_is_accounted_for(log_path: Path, keep: int) -> None:
    heads = written(log_path, 4)
    *whole, last = log_path.read_bytes().splitlines(keepends=True)
    torn = last[:keep]
    log_path.write_bytes(b"".join(whole) + torn)
    report = verify(log_path, heads[2])
    assert report.ok
    assert report.torn_bytes == len(torn)
    with AuditLog(log_path) as log:
        assert log.head.sequence == 4
        log.append("load", {})
    record = json.loads(log_path.read_bytes().splitlines()[4])
    assert record["event"] == "recovery"
    assert record["payload"] == {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}
    report = verify(log_path, heads[2])
    assert report.ok
    assert report.head.sequence == 5
    # The record that was torn had been acknowledged: whoever has its head finds out.
    assert not verify(log_path, heads[3]).ok


def test_torn_bytes_may_not_be_changed_afterwards(log_path: Path) -> None:
    written(log_path, 3)
    log_path.write_bytes(log_path.read_bytes()[:-30])
    AuditLog(log_path).close()
    lines = log_path.read_bytes().splitlines(keepends=True)
    for changed in (lines[2].replace(b"plan2", b"plan9"), b""):
        log_path.write_bytes(b"".join([*lines[:2], changed, *lines[3:]]))
        assert not verify(log_path).ok


def test_a_crash_during_recovery_is_recovered_from(log_path: Path) -> None:
    written(log_path, 3)
    log_path.write_bytes(log_path.read_bytes()[:-30])
    AuditLog(log_path).close()
    log_path.write_bytes(log_path.read_bytes()[:-30])
    AuditLog(log_path).close()
    report = verify(log_path)
    assert report.ok
    assert report.head.sequence == 3


def test_a_crash_before_the_line_break_loses_nothing(log_path: Path) -> None:
    heads = written(log_path, 3)
    log_path.write_bytes(log_path.read_bytes()[:-1])
    assert verify(log_path, heads[-1]).ok
    with AuditLog(log_path) as log:
        assert log.head == heads[-1]
        log.append("load", {})
    assert verify(log_path, heads[-1]).ok


def test_zeros_left_by_a_loss_of_power_are_accounted_for(log_path: Path) -> None:
    written(log_path, 2)
    log_path.write_bytes(log_path.read_bytes() + b"\0" * 512)
    AuditLog(log_path).close()
    assert verify(log_path).ok


@pytest.mark.parametrize("text", [b"a note\n", b"a note", b"\n", b"{}\n", b'{"event":"load"}\n', b"[]"])
def test_a_file_that_is_no_log_is_left_alone(log_path: Path, text: bytes) -> None:
    log_path.write_bytes(text)
    with pytest.raises(AuditError):
        AuditLog(log_path)
    assert log_path.read_bytes() == text
    assert not verify(log_path).ok


def test_a_log_whose_end_was_tampered_with_is_not_continued(log_path: Path) -> None:
    written(log_path, 3)
    log_path.write_bytes(log_path.read_bytes().replace(b"plan2", b"plan7"))
    before = log_path.read_bytes()
    with pytest.raises(AuditError, match="keep it as evidence"):
        AuditLog(log_path)
    assert log_path.read_bytes() == before
