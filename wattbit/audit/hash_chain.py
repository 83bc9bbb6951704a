"""The records of an audit log, the chain of hashes that holds them together, and how it is verified.

What a record looks like and what the chain protects is told in `wattbit.audit.log`. Needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.audit.canonical_json import LARGEST_INT, canonical_json
from wattbit.errors import AuditError
from wattbit.storage.regular_file import open_regular

EVENTS = ("load", "switch", "rollback", "re-run", "certificate", "energy", "recovery")
"""What can be logged; ``recovery`` is written by the log itself after a crash."""

COUNTED_EVENTS = ("re-run",)
"""What a client can cause as often as it likes: counted, not repeated (see `wattbit.audit.log.AuditLog`)."""

MAX_RECORD_BYTES = 256 * 1024
"""The longest line of a log."""

_MOST_TORN = 256
"""A crash leaves one line; only several in a row leave more."""

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


def is_torn(torn: bytes) -> bool:
    """Whether bytes look like what a crash leaves: the beginning of a record, or zeros."""
    start = b'{"event":"'
    return torn.startswith(start) or start.startswith(torn) or not torn.strip(b"\0")


def parse_head(line: bytes) -> AuditHead | None:
    """The head that a line would be, unchecked; None if it is not a record."""
    record = _parsed(line)
    return None if record is None or _garbled(record) else AuditHead(record["seq"], record["hash"])


class Chain:
    """Checks lines one after the other against the hash of the line before.

    Args:
        head: The record before the first line.
    """

    def __init__(self, head: AuditHead | None = None) -> None:
        self.head = head or AuditHead()
        self._torn: list[bytes] = []
        self.record: Mapping[str, Any] = {}

    @property
    def torn(self) -> bytes | None:
        """The lines since the last record that are none; None if there are none."""
        return b"\n".join(self._torn) if self._torn else None

    def take(self, line: bytes) -> str | None:
        """Check the next line, without its line break.

        A line that is not a JSON object is kept in ``torn`` until a recovery record accounts for it; the
        last sound record, without its hash, in ``record``.

        Returns:
            What is wrong with it; None if nothing.
        """
        record = _parsed(line)
        if record is None:
            self._torn.append(line)
            return "is one of too many that are no records" if len(self._torn) > _MOST_TORN else None
        if _garbled(record):
            return "is not a record of an audit log"
        if self._torn and record["event"] != "recovery":
            return "follows a line that is not a record"
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
        if record["event"] == "recovery" and record["payload"] != torn_payload(self.torn or b""):
            return "does not account for the torn bytes before it"
        self._torn = []
        self.head, self.record = AuditHead(record["seq"], digest), record
        return None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What verifying a log found.

    Attributes:
        head: The last sound record.
        problem: What was tampered with and where; None if nothing.
        torn_bytes: Length of an unfinished last line, as a crash leaves it; 0 if there is none.
        after_head: Number of records after the expected head; None if no head was given or it was not found.
    """

    head: AuditHead
    problem: str | None = None
    torn_bytes: int = 0
    after_head: int | None = None

    @property
    def ok(self) -> bool:
        """True if no tampering was found."""
        return self.problem is None


def verify(
    path: Path | str,
    expected_head: str | AuditHead | None = None,
    visit: Callable[[Mapping[str, Any]], None] | None = None,
) -> AuditReport:
    """Check every record of a log.

    Args:
        path: The log.
        expected_head: A head, or its hash, that was published earlier; the log may be longer now.
        visit: Called with every sound record, in order, before the next is checked.

    Raises:
        AuditError: If the file cannot be read, or ``expected_head`` is not a hash.
    """
    expected = expected_head.hash if isinstance(expected_head, AuditHead) else expected_head
    if expected is not None and not is_hash(expected):
        raise AuditError(f"head {expected!r} is not a hash; give the 64 hex digits that were published")
    chain = Chain()
    found_at = 0 if expected == chain.head.hash else None
    ends = True
    try:
        with open_regular(Path(path)) as file:
            # One byte more than a record may have shows a line that is too long without reading all of it.
            for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD_BYTES + 2), b""), 1):
                ends = line.endswith(b"\n")
                problem = chain.take(line.removesuffix(b"\n"))
                if len(line) > MAX_RECORD_BYTES + 1:
                    problem = "is longer than any record"
                if problem:
                    return AuditReport(chain.head, f"line {number} {problem}")
                if chain.head.hash == expected:
                    found_at = chain.head.sequence
                if visit is not None and chain.torn is None:
                    visit(chain.record)
    except OSError as error:
        raise AuditError(f"cannot read audit log {path}: {error.strerror}; give the path of a log") from None
    if chain.torn is not None and (ends or not is_torn(chain.torn)):
        return AuditReport(chain.head, "the last line is not a record of an audit log")
    if expected is not None and found_at is None:
        gone = f"no record has the expected head {expected}: the log was cut off or rewritten"
        return AuditReport(chain.head, gone, len(chain.torn or b""))
    after = None if found_at is None else chain.head.sequence - found_at
    return AuditReport(chain.head, None, len(chain.torn or b""), after)


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
