"""Files that appear whole or not at all, also if the process is killed or several write at once."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from wattbit.errors import OutputError


def write_atomically(
    path: Path, content: bytes | str, remedy: str = "free space or choose another folder"
) -> None:
    """Replace the file at ``path`` by ``content``; folders on the way are made.

    Args:
        path: The file.
        content: What it is to hold; a text is written as UTF-8.
        remedy: What a user can do if that fails.

    Raises:
        OutputError: If the file cannot be written; an older one is still there then.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
