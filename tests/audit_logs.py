"""Audit logs that are written for a test."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wattbit.audit.hash_chain import AuditHead
from wattbit.audit.log import AuditLog
from wattbit.errors import OutputError

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def written(log_path: Path, records: int = 6, note: str = "") -> list[AuditHead]:
    """Write a log; return the head after every record."""
    with AuditLog(log_path, clock=lambda: NOON) as log:
        return [
            log.append("switch", {"plan_id": f"plan{index}{note}", "share": index / 3})
            for index in range(records)
        ]


def records_of(log_path: Path) -> list[dict[str, Any]]:
    """The records of a log."""
    return [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]


def break_log(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every append fail, from the n-th on."""
    append, appended = AuditLog.append, []

    def failing(self: AuditLog, event: str, payload: Any) -> Any:
        appended.append(event)
        if len(appended) > after:
            raise OutputError("cannot write audit log: No space left on device; free space")
        return append(self, event, payload)

    monkeypatch.setattr(AuditLog, "append", failing)
