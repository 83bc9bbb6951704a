"""Audit logs that are written for a test."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from wattbit.audit.hash_chain import AuditHead
from wattbit.audit.log import AuditLog

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def written(log_path: Path, records: int = 6, note: str = "") -> list[AuditHead]:
    """Write a log; return the head after every record."""
    with AuditLog(log_path, clock=lambda: NOON) as log:
        return [
            log.append("switch", {"plan_id": f"plan{index}{note}", "share": index / 3})
            for index in range(records)
        ]
