"""Finding out whether a folder can be written before any work is done for it."""

from __future__ import annotations

import os
from pathlib import Path

from wattbit.errors import OutputError


def require_writable(folder: Path, remedy: str) -> None:
    """Make sure that files can be created in ``folder``, which need not exist yet; nothing is left behind.

    Args:
        folder: The folder.
        remedy: What a user can do if not.

    Raises:
        OutputError: If not.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    probe = existing / f".wattbit-writable-{os.getpid()}"
    try:
        # Made as a folder: some file systems allow files but no folders, and runs need both.
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}; {remedy}") from None
