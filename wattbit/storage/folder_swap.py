"""Two folders that change places at once, and one process at a time that does so in a folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_AT_CWD, _EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def swapped(one: Path, other: Path) -> bool:
    """Exchange two paths so that no reader finds either missing; False where the system cannot do that."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return not rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Wait until no other process holds ``folder``, and hold it; False where the system cannot do that.

    The lock goes with the process, so that one that was killed holds nothing.
    """
    if sys.platform == "win32":
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
