"""What a runtime writes to its audit log, and what it reads from it when it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wattbit.audit.hash_chain import verify
from wattbit.audit.log import AuditLog
from wattbit.errors import AuditError, WattbitError, one_line
from wattbit.serving.bundle import ControllerBundle
from wattbit.serving.controller import Decision

RESTORED = "restored by the operator"

_log = logging.getLogger(__name__)


class RuntimeLog:
    """The audit log of a runtime, or none.

    A rollback is of one plan of one model: whichever runtime, bundle or tolerance brings this plan to this
    model again finds it rolled back, until a runtime restores it. Other plans and retrained models run.

    Args:
        path: The file; None keeps no log.
        decision: The plan that is to run.
        bundle: Where it is from.

    Raises:
        AuditError: If the log is damaged, or open elsewhere.
        OutputError: If it cannot be written.
    """

    def __init__(self, path: Path | str | None, decision: Decision, bundle: ControllerBundle) -> None:
        self._path = path
        self._change = _change(decision, bundle)
        self._unwritten: dict[str, Any] | None = None
        self.lost = False
        self._audit = None if path is None else AuditLog(Path(path))
        try:
            self.rolled_back = None if path is None else self._last_rollback(path)
        except BaseException:
            self.close()
            raise
        if self.rolled_back is not None:
            _log.warning("still rolled back to the reference, until restored: %s", self.rolled_back)

    def write(self, event: str, **payload: Any) -> str | None:
        """Append a record; what went wrong, the first time that one cannot be written, else None."""
        if self._audit is None or self.lost:
            return None
        try:
            self._audit.append(event, payload)
        except Exception as error:
            self.lost = True
            if event == "rollback":
                self._unwritten = payload
            _log.error("audit log lost: %s", one_line(error))
            return one_line(error)
        return None

    def write_change(self, event: str, reason: str) -> str | None:
        """As `write`, of an event that lets the plan begin or end to run."""
        return self.write(event, reason=reason, **self._change)

    def close(self) -> None:
        """Close the log; a rollback that could not be written is written now if that has become possible.

        Raises:
            OutputError: If the end of the log cannot be forced to disk.
        """
        audit, self._audit = self._audit, None
        if audit is not None:
            audit.close()
        unwritten, self._unwritten = self._unwritten, None
        if unwritten is not None and self._path is not None:
            with suppress(WattbitError), AuditLog(Path(self._path)) as again:
                again.append("rollback", unwritten)

    def _last_rollback(self, path: Path | str) -> str | None:
        """The reason of this plan's last rollback, if it was not restored since."""
        reasons: list[str | None] = [None]

        def visit(record: Mapping[str, Any]) -> None:
            event, payload = record["event"], record["payload"]
            if any(payload.get(key) != self._change[key] for key in ("plan_id", "model_fingerprint")):
                return
            if event == "rollback":
                reasons.append(str(payload.get("reason")))
            elif event == "switch" and payload.get("reason") == RESTORED:
                reasons.append(None)

        report = verify(path, visit=visit)
        if not report.ok:
            raise AuditError(
                f"audit log {path} was tampered with: {report.problem}; keep it as evidence and give another "
                "path"
            )
        return reasons[-1]


def _change(decision: Decision, bundle: ControllerBundle) -> dict[str, Any]:
    """What a record says about the plan that comes or goes."""
    plan, certified = decision.plan, decision.certified
    record: dict[str, Any] = {
        "plan_id": plan.plan_id,
        "model_fingerprint": bundle.model_fingerprint,
        "layers_changed": list(plan.changed_layers(bundle.profile.reference_plan)),
    }
    if certified is not None:
        record |= {
            "tolerance_pp": certified.tolerance_pp,
            "drop_pp": certified.drop_pp,
            "saving": certified.saving,
            "provenance": certified.provenance,
        }
    return record
