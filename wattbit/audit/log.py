"""The audit log: what a runtime did, in an append-only file whose edits show.

One record a line, each canonical JSON (RFC 8785)::

    {"event":"switch","hash":"…","payload":{…},"seq":3,"time":"2026-01-31T09:00:00.000000Z"}

``hash`` is the SHA-256 of the previous record's hash (64 hex digits; zeros before the first record) followed
by the canonical JSON of the record without its hash. Whoever kept the hash of a record, the *head* while it
was the last, can tell whether anything up to it was edited, reordered or cut off since. Without a head, a
forger who rewrites the whole rest of the chain, or cuts it off, goes unnoticed.

A crash can tear the last line. The torn bytes stay in the file: on reopening, a ``recovery`` record that
states their number and SHA-256 follows them, chained to the last whole record. Torn bytes without such a
record count as tampering, except an unfinished line at the very end, which is reported.

What a client can cause as often as it likes (`COUNTED_EVENTS`) is counted, so that nobody can flood the log:
of the same event for the same ``reason``, the 1st, 2nd, 4th, 8th, … occurrence is recorded, with its number
as ``count``, and on closing the last one. A kill loses less than half of a count, never the event.

`wattbit.audit.hash_chain.verify` checks a log. Needs nothing but Python.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from wattbit.audit.hash_chain import (
    COUNTED_EVENTS,
    EVENTS,
    MAX_RECORD_BYTES,
    AuditHead,
    Chain,
    is_torn,
    parse_head,
    record_line,
    torn_payload,
)
from wattbit.errors import AuditError, OutputError

if sys.platform != "win32":
    import fcntl

_SYNCED_EVENTS = ("load", "rollback", "certificate", "recovery")
_KINDS_COUNTED = 64
"""Reasons that are counted each by itself; what comes after them is counted together."""

_TAIL_BYTES = 2 * MAX_RECORD_BYTES + 4096
"""Enough of a log's end to hold its last record and the one before."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """Appends records to an audit log; safe to use from several threads.

    Every record is handed to the operating system before `append` returns, so it survives a crash of the
    process. ``fsync`` says when it is forced to disk, and so survives a loss of power.

    Args:
        path: The file, created if missing, continued if it is a log. One writer at a time.
        clock: Gives the time of a record, with a time zone.
        fsync: ``always`` after every record; ``important`` after load, rollback, certificate and recovery,
            and on closing; ``never``.

    Raises:
        AuditError: If the file is no log, its end was tampered with, or another writer has it open.
        OutputError: If the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        clock: Callable[[], datetime] = _utc_now,
        fsync: Literal["always", "important", "never"] = "important",
    ) -> None:
        if fsync not in ("always", "important", "never"):
            raise AuditError(f"fsync {fsync!r} must be always, important or never")
        self._path = Path(path)
        self._clock = clock
        self._fsync = fsync
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str | None], tuple[int, Mapping[str, Any]]] = {}
        self._file = _open(self._path)
        self._head = AuditHead()
        try:
            self._continue()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise _cannot_write(self._path, error) from None
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def head(self) -> AuditHead:
        """The last record; publish it elsewhere, so that cutting the log off can be found."""
        return self._head

    def append(self, event: str, payload: Mapping[str, Any]) -> AuditHead:
        """Append one record; of an event that is counted, only some.

        Args:
            event: One of `EVENTS`.
            payload: What there is to say, JSON values only.

        Returns:
            The head: the new record, if there is one.

        Raises:
            AuditError: If the event is unknown, the payload is not JSON, or the log is closed.
            OutputError: If the record cannot be written; the log is then closed.
        """
        if event not in EVENTS or event == "recovery":
            raise AuditError(f"event {event!r} cannot be logged; choose from {', '.join(EVENTS[:-1])}")
        if not isinstance(payload, Mapping):
            raise AuditError(f"payload {payload!r:.80} must map names to values")
        with self._lock:
            if event in COUNTED_EVENTS:
                return self._count(event, payload)
            return self._append(event, payload)

    def close(self) -> None:
        """Write the last counts, force the log to disk, unless ``fsync`` is ``never``, and close it.

        Closing twice does nothing.

        Raises:
            OutputError: If that cannot be done; the log is closed all the same.
        """
        with self._lock:
            if self._file < 0:
                return
            try:
                for (event, _), (count, payload) in self._counts.items():
                    if not _is_recorded(count):
                        self._append(event, {**payload, "count": count})
                if self._fsync != "never":
                    os.fsync(self._file)
            except OSError as error:
                raise _cannot_write(self._path, error) from None
            finally:
                self._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self, event: str, payload: Mapping[str, Any]) -> AuditHead:
        key: tuple[str, str | None] = (event, str(payload.get("reason")))
        if key not in self._counts and len(self._counts) >= _KINDS_COUNTED:
            key = (event, None)
        count = self._counts.get(key, (0, payload))[0] + 1
        self._counts[key] = (count, payload)
        return self._append(event, {**payload, "count": count}) if _is_recorded(count) else self._head

    def _append(self, event: str, payload: Mapping[str, Any], before: bytes = b"") -> AuditHead:
        if self._file < 0:
            raise AuditError(f"audit log {self._path} is closed; open it again to append")
        now = self._clock()
        if now.tzinfo is None:
            raise AuditError(f"the clock gave {now} without a time zone; give one that knows its time zone")
        try:
            time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            line, head = record_line(self._head, event, time, payload)
        except ValueError as error:
            raise AuditError(f"cannot log {event!r}: {error}") from None
        if len(line) > MAX_RECORD_BYTES:
            raise AuditError(
                f"record of {len(line)} bytes is above the limit of {MAX_RECORD_BYTES}; log less"
            )
        sync = self._fsync == "always" or (self._fsync == "important" and event in _SYNCED_EVENTS)
        self._write(before + line + b"\n", sync)
        self._head = head
        return head

    def _write(self, data: bytes, sync: bool) -> None:
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
            if sync:
                os.fsync(self._file)
        except OSError as error:
            # The file may now end in a torn line, which only opening it again puts right.
            self._abandon()
            raise _cannot_write(self._path, error) from None

    def _abandon(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _continue(self) -> None:
        """Check the end of an existing log, take up its chain, and account for a line torn by a crash."""
        _lock_file(self._file, self._path)
        with self._path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            *lines, rest = file.read().split(b"\n")
        chain = Chain()
        if start:
            # The first line read is cut; the first whole record after it is where checking can begin.
            heads = ((index, parse_head(line)) for index, line in enumerate(lines[1:], 1))
            index, head = next(((i, head) for i, head in heads if head), (0, None))
            if head is None:
                raise AuditError(f"{self._path} does not end in audit records; give another path for the log")
            lines, chain = lines[index + 1 :], Chain(head)
        for line in [*lines, rest] if rest else lines:
            problem = chain.take(line)
            if problem:
                raise AuditError(
                    f"audit log {self._path} was tampered with: a record near its end {problem}; "
                    "keep it as evidence and give another path"
                )
        if chain.torn is not None and not (rest and is_torn(chain.torn)):
            raise AuditError(f"{self._path} does not end in an audit record; give another path for the log")
        self._head = chain.head
        if chain.torn is not None:
            self._append("recovery", torn_payload(chain.torn), before=b"\n")
        elif rest:
            self._write(b"\n", sync=False)


def _is_recorded(count: int) -> bool:
    """Whether an occurrence of this number is written when it happens: powers of two are."""
    return not count & (count - 1)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")
        binary = getattr(os, "O_BINARY", 0)  # Windows would write two bytes for a line break
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | binary, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _lock_file(file: int, path: Path) -> None:
    """Keep a second writer out, whose records would break the chain."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"audit log {path} is open elsewhere; give every runtime its own log") from None
        except OSError:
            # Some network file systems cannot lock; the log works there all the same.
            return


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or error
    return OutputError(f"cannot write audit log {path}: {reason}; free space or choose another path")
