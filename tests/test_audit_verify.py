"""Every change to a record of an audit log shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from audit_logs import NOON, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattbit.audit.__main__ import main
from wattbit.audit.hash_chain import EVENTS, verify
from wattbit.audit.log import AuditLog
from wattbit.errors import AuditError

# --- Tampering ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changing_any_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    log_path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    written(log_path, 4)
    original = log_path.read_bytes()
    # All but the very last line break, without which the last record is still whole.
    position = data.draw(st.integers(0, len(original) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[position]))
    log_path.write_bytes(original[:position] + bytes([byte]) + original[position + 1 :])
    assert not verify(log_path).ok


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
def test_tampering_is_found_and_located(log_path: Path, edit: Edit) -> None:
    written(log_path)
    log_path.write_bytes(b"".join(edit(log_path.read_bytes().splitlines(keepends=True))))
    report = verify(log_path)
    assert not report.ok
    assert report.problem is not None
    assert "line" in report.problem
    assert "\n" not in report.problem


def test_the_report_names_the_line_that_was_edited(log_path: Path) -> None:
    heads = written(log_path)
    log_path.write_bytes(log_path.read_bytes().replace(b"plan3", b"plan8"))
    report = verify(log_path)
    assert report.problem == "line 4 does not match its hash: it was edited, or a record before it was"
    assert report.head == heads[2]


def test_truncation_is_found_by_whoever_has_the_head(log_path: Path) -> None:
    heads = written(log_path)
    log_path.write_bytes(b"".join(log_path.read_bytes().splitlines(keepends=True)[:4]))
    assert verify(log_path).ok
    report = verify(log_path, heads[-1].hash)
    assert report.problem is not None
    assert "cut off or rewritten" in report.problem
    assert verify(log_path, heads[3]).ok


def test_a_chain_rewritten_from_some_record_on_is_found_by_whoever_has_a_later_head(log_path: Path) -> None:
    heads = written(log_path)
    log_path.unlink()
    with AuditLog(log_path, clock=lambda: NOON) as log:
        for index in range(6):
            log.append("switch", {"plan_id": f"plan{index + (index > 2)}", "share": index / 3})
    assert verify(log_path).ok
    assert verify(log_path, heads[2]).ok
    assert not verify(log_path, heads[3]).ok


def test_an_older_head_tells_how_far_the_log_has_grown(log_path: Path) -> None:
    heads = written(log_path)
    assert [verify(log_path, head).after_head for head in heads] == [5, 4, 3, 2, 1, 0]
    assert verify(log_path).after_head is None


def test_an_empty_log_is_sound_unless_a_head_was_published(log_path: Path) -> None:
    head = written(log_path)[-1]
    log_path.write_bytes(b"")
    assert verify(log_path).ok
    assert not verify(log_path, head).ok


def test_what_is_no_head_is_refused(log_path: Path) -> None:
    written(log_path)
    for head in ("", "abc", "Z" * 64, "A" * 64):
        with pytest.raises(AuditError, match="64 hex digits"):
            verify(log_path, head)


# --- The command -------------------------------------------------------------------------------------------


def test_the_command_says_sound_tampered_or_unusable(
    log_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = written(log_path)
    assert main(["verify", str(log_path)]) == 0
    assert capsys.readouterr().out == f"{log_path}: sound, 6 records, head {heads[-1].hash}\n"
    assert main(["verify", str(log_path), "--head", heads[1].hash]) == 0
    assert "4 after the expected head" in capsys.readouterr().out
    assert main(["verify", str(log_path), "--head", "f" * 64]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    log_path.write_bytes(log_path.read_bytes().replace(b"plan3", b"plan8"))
    assert main(["verify", str(log_path)]) == 1
    assert "tampered with: line 4" in capsys.readouterr().err
    assert main(["verify", str(log_path.with_name("none"))]) == 2
    assert "cannot read audit log" in capsys.readouterr().err
    assert main(["verify", str(log_path), "--head", "abc"]) == 2
    assert main(["verify", str(log_path.parent)]) == 2


def test_the_command_runs_as_a_module(log_path: Path) -> None:
    written(log_path)
    command = [sys.executable, "-W", "error", "-m", "wattbit.audit", "verify", str(log_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_every_event_of_the_design_can_be_logged(log_path: Path) -> None:
    assert EVENTS == ("load", "switch", "rollback", "re-run", "certificate", "energy", "recovery")
    with AuditLog(log_path) as log:
        for event in EVENTS[:-1]:
            log.append(event, {})
    assert verify(log_path).ok
