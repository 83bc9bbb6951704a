"""One measurement at a time: two that overlap would each be billed for the other's work.

A lock is a file in the system's folder for temporary files, held with ``flock``. The system lets go of it
when its holder ends, however that happens, so a crash blocks nobody; and nobody waits for ever. It is
advisory, and containers with temporary folders of their own do not see each other: what meters find out about
foreign work remains the second line of defence.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from wattbit.errors import MeterError

if sys.platform != "win32":
    import fcntl

WAIT_S = 120.0
"""How long to wait for another measurement to end, seconds; one comparison takes seconds to a minute."""

_LONGEST_PAUSE_S = 0.02


@contextlib.contextmanager
def exclusive_use(
    keys: Sequence[str], *, wait_s: float = WAIT_S, folder: Path | None = None
) -> Iterator[None]:
    """Hold the locks called ``keys`` while the context lasts; re-entrant within a thread.

    Args:
        keys: What is measured, such as GPUs by UUID; locks are taken in sorted order, so no two wait for
            each other.
        wait_s: Longest wait for each, seconds.
        folder: Where the lock files are; None for the system's folder for temporary files.

    Raises:
        MeterError: If another process or thread keeps a lock for longer than ``wait_s``, or the lock file
            cannot be opened.
    """
    place = _temporary_folder() if folder is None else folder
    with contextlib.ExitStack() as stack:
        for key in sorted(set(keys)):
            stack.enter_context(_lock(key, place).held(wait_s))
        yield


class _Lock:
    """One lock: between threads by a re-entrant lock, between processes by a file."""

    def __init__(self, key: str, path: Path) -> None:
        self._key = key
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0
        self._file: int | None = None

    @contextlib.contextmanager
    def held(self, wait_s: float) -> Iterator[None]:
        deadline = time.monotonic() + wait_s
        if not self._threads.acquire(timeout=wait_s):
            raise MeterError(self._busy(wait_s, "another thread of this process"))
        try:
            if self._depth == 0:
                self._file = self._acquire_file(deadline, wait_s)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.forget_file()
        finally:
            self._threads.release()

    def forget_file(self) -> None:
        """Close the file, which lets go of the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _acquire_file(self, deadline: float, wait_s: float) -> int | None:
        if sys.platform == "win32":
            return None  # no flock: threads of this process alone are kept apart
        file = _open(self._path)
        try:
            while not _try_flock(file):
                if time.monotonic() >= deadline:
                    raise MeterError(self._busy(wait_s, _holder(file)))
                time.sleep(random.uniform(0.25, 1.0) * _LONGEST_PAUSE_S)  # noqa: S311 - no secret
            _sign(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _busy(self, wait_s: float, holder: str) -> str:
        return (
            f"{self._key} is being measured by {holder} and was not free within {wait_s:g} s; "
            "measure one at a time: wait for it to end, or stop it"
        )


_locks: dict[Path, _Lock] = {}
_locks_guard = threading.Lock()


def _lock(key: str, folder: Path) -> _Lock:
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder / f"wattbit-meter-{digest}.lock"
    with _locks_guard:
        return _locks.setdefault(path, _Lock(key, path))


def _forget_locks_of_parent() -> None:
    # A forked child has a copy of the parent's open files: closed here, it cannot keep a lock that its parent
    # gave back or died with.
    global _locks_guard
    _locks_guard = threading.Lock()
    for lock in _locks.values():
        lock.forget_file()
    _locks.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks_of_parent)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise MeterError(
            "no folder for temporary files, where meters keep their lock; set TMPDIR to one"
        ) from None


def _open(path: Path) -> int:
    """Open the lock file, made by whichever user came first; the lock needs no right to write."""
    safe = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for flags in (os.O_RDWR | safe, os.O_RDONLY | safe):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | safe, 0o644)
        return os.open(path, os.O_RDONLY | safe)
    except OSError as error:
        raise MeterError(
            f"cannot open the lock file {path}: {error.strerror}; set TMPDIR to a folder that can be written"
        ) from None


def _try_flock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise MeterError(
            f"cannot lock in the folder for temporary files: {error.strerror}; set TMPDIR to a local folder"
        ) from None
    return True


def _sign(file: int) -> None:
    """Write who holds the lock, for the message that others get; it does not matter if that fails."""
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)


def _holder(file: int) -> str:
    try:
        text = os.pread(file, 32, 0).decode(errors="replace").strip()
    except OSError:
        text = ""
    return f"process {text}" if text.isdigit() else "another process"
