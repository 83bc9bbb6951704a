"""The audit log: every change to a record shows, crashes are accounted for, and restarts go on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattbit.audit import hash_chain
from wattbit.audit.log import EVENTS, AuditHead, AuditLog, main, verify
from wattbit.errors import AuditError, OutputError

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def written(path: Path, records: int = 6) -> list[AuditHead]:
    """Write a log; return the head after every record."""
    with AuditLog(path, clock=lambda: NOON) as log:
        return [
            log.append("switch", {"plan_id": f"plan{index}", "share": index / 3}) for index in range(records)
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


# --- What is written ---------------------------------------------------------------------------------------


def test_a_record_holds_number_time_event_payload_and_the_chained_hash(path: Path) -> None:
    with AuditLog(path, clock=lambda: NOON) as log:
        log.append("load", {"plan_id": "ab", "energy_j": 1.5e-7})
        log.append("energy", {"saved_j": 20.0, "provenance": "modelled"})
    previous = "0" * 64
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        record = json.loads(line)
        assert line == rfc8785.dumps(record)
        assert record["seq"] == number
        assert record["time"] == "2026-01-31T12:00:00.000000Z"
        digest = record.pop("hash")
        assert digest == hashlib.sha256(previous.encode() + rfc8785.dumps(record)).hexdigest()
        previous = digest
    assert previous == log.head.hash


def test_times_are_written_in_utc(path: Path) -> None:
    berlin = timezone(timedelta(hours=1))
    with AuditLog(path, clock=lambda: datetime(2026, 1, 31, 13, 0, tzinfo=berlin)) as log:
        log.append("load", {})
    assert json.loads(path.read_text())["time"] == "2026-01-31T12:00:00.000000Z"


def test_the_head_is_the_last_record(path: Path) -> None:
    with AuditLog(path) as log:
        assert log.head == AuditHead(0, "0" * 64)
        head = log.append("load", {})
        assert log.head == head
        assert head.sequence == 1


def test_a_record_is_in_the_file_as_soon_as_append_returns(path: Path) -> None:
    with AuditLog(path, fsync="never") as log:
        head = log.append("switch", {})
        assert verify(path).head == head


@pytest.mark.parametrize(("policy", "syncs"), [("always", 3), ("important", 2), ("never", 0)])
def test_records_are_forced_to_disk_as_the_policy_says(
    path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with AuditLog(path, fsync=policy) as log:
        log.append("switch", {})
        log.append("rollback", {})
    # The last one is on closing.
    assert len(synced) == syncs


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    written(tmp_path / "a" / "b" / "audit.jsonl")
    assert verify(tmp_path / "a" / "b" / "audit.jsonl").ok


def test_threads_may_append_at_once(path: Path) -> None:
    with AuditLog(path, fsync="never") as log:
        threads = [
            threading.Thread(target=lambda: [log.append("switch", {"index": index}) for index in range(50)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = verify(path)
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
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with AuditLog(path, fsync="never") as log:
        for payload in payloads:
            log.append("energy", payload)
    report = verify(path, log.head)
    assert report.ok, report.problem
    assert report.head.sequence == len(payloads)
    # Whole floats are written without a point, so that a reader has to ask for floats back.
    records = [json.loads(line, parse_int=float) for line in path.read_bytes().splitlines()]
    assert [record["payload"] for record in records] == payloads


# --- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["recovery", "Load", "", "login"])
def test_an_unknown_event_is_refused(path: Path, event: str) -> None:
    with AuditLog(path) as log, pytest.raises(AuditError, match="choose from load, switch"):
        log.append(event, {})


@pytest.mark.parametrize(
    "payload", [{"x": float("nan")}, {"x": object()}, {"x": 2**60}, {1: 2}, ["x"], {"x": "\ud800"}]
)
def test_a_payload_that_is_not_json_is_refused_and_leaves_the_log_as_it_was(path: Path, payload: Any) -> None:
    with AuditLog(path) as log:
        head = log.append("load", {})
        before = path.read_bytes()
        with pytest.raises(AuditError) as caught:
            log.append("switch", payload)
        assert "\n" not in str(caught.value)
        assert (log.head, path.read_bytes()) == (head, before)
        log.append("switch", {})
    assert verify(path).ok


def test_a_record_that_is_too_long_is_refused(path: Path) -> None:
    with AuditLog(path) as log, pytest.raises(AuditError, match="log less"):
        log.append("load", {"text": "x" * hash_chain.MAX_RECORD_BYTES})
    assert path.read_bytes() == b""


def test_a_clock_without_a_time_zone_is_refused(path: Path) -> None:
    with (
        AuditLog(path, clock=lambda: NOON.replace(tzinfo=None)) as log,
        pytest.raises(AuditError, match="time zone"),
    ):
        log.append("load", {})


def test_an_unknown_fsync_policy_is_refused(path: Path) -> None:
    policy: Any = "sometimes"
    with pytest.raises(AuditError, match="fsync"):
        AuditLog(path, fsync=policy)


def test_a_closed_log_refuses_to_append_and_closes_twice(path: Path) -> None:
    log = AuditLog(path)
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


def test_a_second_writer_is_kept_out(path: Path) -> None:
    with AuditLog(path) as log:
        with pytest.raises(AuditError, match="open elsewhere"):
            AuditLog(path)
        log.append("load", {})
    with AuditLog(path) as log:
        assert log.head.sequence == 1


def test_a_full_disk_closes_the_log_and_reopening_accounts_for_what_was_torn(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    with AuditLog(path) as log:
        log.append("load", {})
        monkeypatch.setattr(os, "write", lambda file, data: real_write(file, data[:20]))
        with pytest.raises(OutputError, match="only 20 of"):
            log.append("switch", {})
        monkeypatch.undo()
        with pytest.raises(AuditError, match="closed"):
            log.append("switch", {})
    with AuditLog(path) as log:
        assert log.head.sequence == 2
    assert verify(path).ok


# --- Going on ----------------------------------------------------------------------------------------------


def test_a_log_goes_on_after_a_restart(path: Path) -> None:
    heads = written(path, 3)
    with AuditLog(path) as log:
        assert log.head == heads[-1]
        log.append("load", {})
    report = verify(path, heads[-1])
    assert report.ok
    assert report.head.sequence == 4
    assert report.after_head == 1


def test_a_long_log_goes_on_though_only_its_end_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattbit.audit.log._TAIL_BYTES", 1000)
    head = written(path, 40)[-1]
    assert path.stat().st_size > 5000
    with AuditLog(path) as log:
        assert log.head == head
        log.append("load", {})
    assert verify(path).head.sequence == 41


@pytest.mark.parametrize("keep", [1, 9, 40, -2])
def test_a_line_torn_by_a_crash_stays_and_is_accounted_for(path: Path, keep: int) -> None:
    heads = written(path, 4)
    *whole, last = path.read_bytes().splitlines(keepends=True)
    torn = last[:keep]
    path.write_bytes(b"".join(whole) + torn)
    report = verify(path, heads[2])
    assert report.ok
    assert report.torn_bytes == len(torn)
    with AuditLog(path) as log:
        assert log.head.sequence == 4
        log.append("load", {})
    record = json.loads(path.read_bytes().splitlines()[4])
    assert record["event"] == "recovery"
    assert record["payload"] == {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}
    report = verify(path, heads[2])
    assert report.ok
    assert report.head.sequence == 5
    # The record that was torn had been acknowledged: whoever has its head finds out.
    assert not verify(path, heads[3]).ok


def test_torn_bytes_may_not_be_changed_afterwards(path: Path) -> None:
    written(path, 3)
    path.write_bytes(path.read_bytes()[:-30])
    AuditLog(path).close()
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[2].replace(b"plan2", b"plan9"), b""):
        path.write_bytes(b"".join([*lines[:2], changed, *lines[3:]]))
        assert not verify(path).ok


def test_a_crash_during_recovery_is_recovered_from(path: Path) -> None:
    written(path, 3)
    path.write_bytes(path.read_bytes()[:-30])
    AuditLog(path).close()
    path.write_bytes(path.read_bytes()[:-30])
    AuditLog(path).close()
    report = verify(path)
    assert report.ok
    assert report.head.sequence == 3


def test_a_crash_before_the_line_break_loses_nothing(path: Path) -> None:
    heads = written(path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(path, heads[-1]).ok
    with AuditLog(path) as log:
        assert log.head == heads[-1]
        log.append("load", {})
    assert verify(path, heads[-1]).ok


def test_zeros_left_by_a_loss_of_power_are_accounted_for(path: Path) -> None:
    written(path, 2)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    AuditLog(path).close()
    assert verify(path).ok


@pytest.mark.parametrize("text", [b"a note\n", b"a note", b"\n", b"{}\n", b'{"event":"load"}\n', b"[]"])
def test_a_file_that_is_no_log_is_left_alone(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(AuditError):
        AuditLog(path)
    assert path.read_bytes() == text
    assert not verify(path).ok


def test_a_log_whose_end_was_tampered_with_is_not_continued(path: Path) -> None:
    written(path, 3)
    path.write_bytes(path.read_bytes().replace(b"plan2", b"plan7"))
    before = path.read_bytes()
    with pytest.raises(AuditError, match="keep it as evidence"):
        AuditLog(path)
    assert path.read_bytes() == before


# --- Tampering ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changing_any_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    written(path, 4)
    original = path.read_bytes()
    # All but the very last line break, without which the last record is still whole.
    position = data.draw(st.integers(0, len(original) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[position]))
    path.write_bytes(original[:position] + bytes([byte]) + original[position + 1 :])
    assert not verify(path).ok


Edit = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda lines: [*lines[:2], *lines[3:]], id="a record removed"),
        pytest.param(lambda lines: lines[1:], id="the first record removed"),
        pytest.param(lambda lines: [*lines[:2], lines[1], *lines[2:]], id="a record doubled"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], id="records exchanged"),
        pytest.param(lambda lines: lines[::-1], id="records reversed"),
        pytest.param(lambda lines: [*lines[:2], b"\n", *lines[2:]], id="an empty line added"),
        pytest.param(lambda lines: [*lines, b"\n"], id="an empty line added at the end"),
        pytest.param(lambda lines: [*lines[:2], b"# note\n", *lines[2:]], id="a comment added"),
        pytest.param(lambda lines: [*lines, b"# note\n"], id="a comment added at the end"),
        pytest.param(lambda lines: [line.replace(b":", b": ", 1) for line in lines], id="blanks added"),
        pytest.param(lambda lines: [*lines[:2], b"[" * 50_000 + b"\n", *lines[2:]], id="nested nonsense"),
        pytest.param(
            lambda lines: [*lines[:5], lines[5][:-3] + b'",' + b" " * 300_000 + b"}\n"], id="too long"
        ),
        pytest.param(
            lambda lines: [lines[0].replace(b'"seq":1', b'"seq":true'), *lines[1:]], id="true for 1"
        ),
    ],
)
def test_tampering_is_found_and_located(path: Path, edit: Edit) -> None:
    written(path)
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    report = verify(path)
    assert not report.ok
    assert report.problem is not None
    assert "line" in report.problem
    assert "\n" not in report.problem


def test_the_report_names_the_line_that_was_edited(path: Path) -> None:
    heads = written(path)
    path.write_bytes(path.read_bytes().replace(b"plan3", b"plan8"))
    report = verify(path)
    assert report.problem == "line 4 does not match its hash: it was edited, or a record before it was"
    assert report.head == heads[2]


def test_truncation_is_found_by_whoever_has_the_head(path: Path) -> None:
    heads = written(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert verify(path).ok
    report = verify(path, heads[-1].hash)
    assert report.problem is not None
    assert "cut off or rewritten" in report.problem
    assert verify(path, heads[3]).ok


def test_a_chain_rewritten_from_some_record_on_is_found_by_whoever_has_a_later_head(path: Path) -> None:
    heads = written(path)
    path.unlink()
    with AuditLog(path, clock=lambda: NOON) as log:
        for index in range(6):
            log.append("switch", {"plan_id": f"plan{index + (index > 2)}", "share": index / 3})
    assert verify(path).ok
    assert verify(path, heads[2]).ok
    assert not verify(path, heads[3]).ok


def test_an_older_head_tells_how_far_the_log_has_grown(path: Path) -> None:
    heads = written(path)
    assert [verify(path, head).after_head for head in heads] == [5, 4, 3, 2, 1, 0]
    assert verify(path).after_head is None


def test_an_empty_log_is_sound_unless_a_head_was_published(path: Path) -> None:
    head = written(path)[-1]
    path.write_bytes(b"")
    assert verify(path).ok
    assert not verify(path, head).ok


def test_what_is_no_head_is_refused(path: Path) -> None:
    written(path)
    for head in ("", "abc", "Z" * 64, "A" * 64):
        with pytest.raises(AuditError, match="64 hex digits"):
            verify(path, head)


# --- The command -------------------------------------------------------------------------------------------


def test_the_command_says_sound_tampered_or_unusable(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = written(path)
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: sound, 6 records, head {heads[-1].hash}\n"
    assert main(["verify", str(path), "--head", heads[1].hash]) == 0
    assert "4 after the expected head" in capsys.readouterr().out
    assert main(["verify", str(path), "--head", "f" * 64]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    path.write_bytes(path.read_bytes().replace(b"plan3", b"plan8"))
    assert main(["verify", str(path)]) == 1
    assert "tampered with: line 4" in capsys.readouterr().err
    assert main(["verify", str(path.with_name("none"))]) == 2
    assert "cannot read audit log" in capsys.readouterr().err
    assert main(["verify", str(path), "--head", "abc"]) == 2
    assert main(["verify", str(path.parent)]) == 2


def test_the_command_runs_as_a_module(path: Path) -> None:
    written(path)
    command = [sys.executable, "-W", "error", "-m", "wattbit.audit", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_every_event_of_the_design_can_be_logged(path: Path) -> None:
    assert EVENTS == ("load", "switch", "rollback", "re-run", "certificate", "energy", "recovery")
    with AuditLog(path) as log:
        for event in EVENTS[:-1]:
            log.append(event, {})
    assert verify(path).ok
