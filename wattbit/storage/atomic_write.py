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

    A link is followed. What is neither a file nor a link to one, such as ``/dev/stdout``, is written to.

    Args:
        path: The file.
        content: What it is to hold; a text is written as UTF-8.
        remedy: What a user can do if that fails.

    Raises:
        OutputError: If the file cannot be written; an older one is still there then.
    """
    data = content.encode() if isinstance(content, str) else content
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
