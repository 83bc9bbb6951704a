"""Reading files that others wrote: regular ones only, and no more of them than their kind may have."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

# A pipe would be waited for, a device never ends; Windows knows neither flag, but must be told of bytes.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, most_bytes: int | None = None, *, follow_links: bool = True) -> BufferedReader:
    """Open the regular file at ``path`` for reading.

    Args:
        path: The file.
        most_bytes: The largest size it may have; None for any.
        follow_links: False to refuse a symbolic link.

    Raises:
        OSError: If it cannot be opened, is not a regular file, or is larger; ``strerror`` says which.
    """
    flags = _FLAGS | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_symlink() and not follow_links:
            raise OSError(0, "it is a symbolic link, not a regular file") from None
        raise
    except ValueError as error:  # a NUL in the name
        raise OSError(0, str(error)) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is not a regular file")
        if most_bytes is not None and found.st_size > most_bytes:
            raise OSError(0, f"it has {found.st_size} bytes, above the limit of {most_bytes}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most_bytes: int, *, follow_links: bool = True) -> bytes:
    """The content of the regular file at ``path``; arguments and errors are those of `open_regular`."""
    with open_regular(path, most_bytes, follow_links=follow_links) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(0, f"it grew above the limit of {most_bytes} bytes while it was read")
    return data
