"""The records of an audit log and the chain of hashes that holds them together; see `wattbit.audit`.

No input or output happens here: lines go in, problems come out. Needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattbit.canonical import LARGEST_INT, canonical_json

EVENTS = ("load", "switch", "rollback", "re-run", "certificate", "energy", "recovery")
"""What can be logged; ``recovery`` is written by the log itself after a crash."""

MAX_RECORD_BYTES = 256 * 1024
"""The longest line of a log."""

_HASH = re.compile(r"[0-9a-f]{64}")
_KINDS = {"event": str, "hash": str, "payload": dict, "seq": int, "time": str}


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last record of a log: publish it, and the log up to it can be verified.

    Attributes:
        sequence: The record's number, from 1; also the number of records. 0 for an empty log.
        hash: The record's hash, 64 hex digits; zeros for an empty log.
    """

    sequence: int = 0
    hash: str = "0" * 64


def is_hash(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in 64 small hex digits."""
    return _HASH.fullmatch(text) is not None


def record_line(
    head: AuditHead, event: str, time: str, payload: Mapping[str, Any]
) -> tuple[bytes, AuditHead]:
    """The line, without line break, of the record that follows ``head``, and the new head.

    Raises:
        ValueError: If the payload holds what canonical JSON cannot.
    """
    body = {"event": event, "payload": payload, "seq": head.sequence + 1, "time": time}
    digest = _chained(head, body)
    return canonical_json({**body, "hash": digest}), AuditHead(head.sequence + 1, digest)


def torn_payload(torn: bytes) -> dict[str, Any]:
    """What a ``recovery`` record says about the torn bytes before it."""
    return {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}


def parse_head(line: bytes) -> AuditHead | None:
    """The head that a line would be, unchecked; None if it is no record."""
    record = _parsed(line)
    return None if record is None or _garbled(record) else AuditHead(record["seq"], record["hash"])


class Chain:
    """Checks lines one after the other against the hash of the line before.

    Args:
        head: The record before the first line.
    """

    def __init__(self, head: AuditHead | None = None) -> None:
        self.head = head or AuditHead()
        self.torn = b""

    def take(self, line: bytes) -> str | None:
        """Check the next line, without its line break.

        A line that is no JSON object is kept in ``torn`` until a recovery record accounts for it.

        Returns:
            What is wrong with it; None if nothing.
        """
        record = _parsed(line)
        if record is None:
            self.torn = self.torn + b"\n" + line if self.torn else line
            return None
        if _garbled(record):
            return "is no record of an audit log"
        if record["seq"] != self.head.sequence + 1:
            return (
                f"has sequence number {record['seq']} where {self.head.sequence + 1} belongs: "
                "records were removed, added or reordered"
            )
        digest = record.pop("hash")
        try:
            sound = digest == _chained(self.head, record) and line == canonical_json(
                {**record, "hash": digest}
            )
        except ValueError:
            sound = False
        if not sound:
            return "does not match its hash: it was edited, or a record before it was"
        if (record["event"] == "recovery" or self.torn) and not self._recovers(record):
            return "does not account for the torn bytes before it"
        self.torn = b""
        self.head = AuditHead(record["seq"], digest)
        return None

    def _recovers(self, record: dict[str, Any]) -> bool:
        return record["event"] == "recovery" and record["payload"] == torn_payload(self.torn)


def _chained(head: AuditHead, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(head.hash.encode() + canonical_json(body)).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8"), parse_int=_number)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _number(text: str) -> int | float:
    """Canonical JSON writes floats such as 1e20 without an exponent: read them back as floats."""
    return int(text) if len(text) <= 17 and abs(int(text)) <= LARGEST_INT else float(text)


def _garbled(record: dict[str, Any]) -> bool:
    if set(record) != set(_KINDS) or any(not isinstance(record[key], kind) for key, kind in _KINDS.items()):
        return True
    return record["event"] not in EVENTS or isinstance(record["seq"], bool) or not is_hash(record["hash"])
