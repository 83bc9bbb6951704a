"""A folder of files that a manifest of hashes holds together; `wattbit.serving.bundle` says what is in them.

Hashes find damage and mixed-up files. They do not stop a forger, who can compute them too; a signature does.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wattbit.errors import BundleError, OutputError
from wattbit.serving.signature import require_signature, sign
from wattbit.storage.folder_swap import locked, swapped
from wattbit.storage.regular_file import open_regular, read_regular
from wattbit.storage.strict_json import dump_json, parse_json

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

_MOST_MANIFEST_BYTES = 2**20
_MOST_BYTES = 2**25
"""What the files that are parsed may have together."""
_MOST_HASHED_BYTES = 2**28
_ATTEMPTS = 40

_OWN_HASH = "manifest_sha256"
_EARLIER = {1: ", in which models had other fingerprints"}


def write_files(
    folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any], signing_key: Any = None
) -> None:
    """Write ``files`` and their manifest to ``folder``, which appears whole or not at all.

    Args:
        folder: Where to; an older bundle is replaced.
        files: Contents by file name.
        manifest: What the manifest says besides the hashes, JSON values only.
        signing_key: An Ed25519 private key; None writes no signature.

    Raises:
        BundleError: If the key is none.
        OutputError: If the folder cannot be written, or holds something else than a bundle.
    """
    unsigned = {
        **manifest,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    content = _with_own_hash(unsigned)
    signature = {} if signing_key is None else {SIGNATURE: sign(content, signing_key)}
    try:
        _write_folder(folder.resolve(), {**files, **signature, MANIFEST: content})
    except OSError as error:
        raise OutputError(
            f"cannot write bundle {folder}: {error.strerror or error}; free space or choose another folder"
        ) from None


def read_files(
    folder: Path, schema: int, known: Collection[str], unread: Collection[str] = (), public_key: Any = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest in ``folder``, and the files it lists, each checked against its hash.

    Another process may replace the folder meanwhile: then it is read again.

    Args:
        folder: The folder.
        schema: The manifest's schema.
        known: Names that files may have.
        unread: Those among them that are checked, but not kept in memory.
        public_key: An Ed25519 public key that the manifest must be signed for; None asks for no signature.

    Raises:
        BundleError: If a file is missing, was changed, is too large or not a regular file; the message names
            it. Also if the signature is not the key's.
    """
    for attempt in range(_ATTEMPTS - 1):
        before = _identity(folder)
        try:
            return _read_once(folder, schema, known, unread, public_key)
        except BundleError:
            if not _replaced(folder, before):
                raise
            time.sleep(0.002 * attempt)
    return _read_once(folder, schema, known, unread, public_key)


def _read_once(
    folder: Path, schema: int, known: Collection[str], unread: Collection[str], public_key: Any
) -> tuple[dict[str, Any], dict[str, bytes]]:
    manifest = _read_manifest(folder, schema, public_key)
    files: dict[str, bytes] = {}
    for name, digest in manifest["files"].items():
        if name not in known:
            raise BundleError(
                f"{folder / MANIFEST} lists {name!r:.80}, which no bundle has; export the bundle again"
            )
        left = _MOST_BYTES - sum(map(len, files.values()))
        data = _read_verified(folder / name, str(digest), None if name in unread else left)
        if data is not None:
            files[name] = data
    return manifest, files


def _identity(folder: Path) -> tuple[int, int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _replaced(folder: Path, before: tuple[int, int, int] | None) -> bool:
    """Whether the folder is another one now, or just being put in its place."""
    now = _identity(folder)
    return now != before or (now is None and any(folder.parent.glob(f".{folder.name}-*")))


def _with_own_hash(manifest: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(dump_json(manifest).encode()).hexdigest()
    return dump_json({**manifest, _OWN_HASH: digest}).encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` beside ``folder``, then put them in its place."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose a new or empty folder for the bundle")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise OutputError(f"{folder} holds something else than a bundle; choose a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent) as alone:
        if alone:  # then what lies beside the folder was left by a process that was killed
            for left in folder.parent.glob(f".{folder.name}-????????"):
                if not (left / "old").exists() or folder.exists():
                    shutil.rmtree(left, ignore_errors=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        _build(folder, files, workshop)


def _build(folder: Path, files: Mapping[str, bytes], workshop: Path) -> None:
    new, old = workshop / "new", workshop / "old"
    try:
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        if not (folder.exists() and swapped(new, folder)):
            if folder.exists():
                folder.replace(old)
            try:
                new.replace(folder)
            except OSError:
                if old.exists():
                    old.replace(folder)
                raise
    except BaseException:
        # Where the older bundle could not be put back, the workshop is the only place that has it.
        if not old.exists():
            shutil.rmtree(workshop, ignore_errors=True)
        raise
    shutil.rmtree(workshop, ignore_errors=True)


def _read_manifest(folder: Path, schema: int, public_key: Any) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = read_regular(path, _MOST_MANIFEST_BYTES, follow_links=False)
        if public_key is not None:
            require_signature(folder / SIGNATURE, data, public_key)
        manifest = parse_json(data)
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}; give the bundle folder that train.py wrote"
        ) from None
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({error}); export the bundle again") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != schema:
        why = _EARLIER.get(found, "") if isinstance(found, int) else ""
        raise BundleError(
            f"{path} has format version {found!r:.80}{why}; this wattbit reads version {schema}; "
            "export the bundle again"
        )
    unsigned = {key: value for key, value in manifest.items() if key != _OWN_HASH}
    try:
        sound = _with_own_hash(unsigned) == data
    except ValueError:
        sound = False
    if not sound:
        raise BundleError(f"{path} does not match its own hash: it was changed; export the bundle again")
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path} lists no files; export the bundle again")
    return unsigned


def _read_verified(path: Path, digest: str, most_bytes: int | None) -> bytes | None:
    """The content, checked against its hash; None where ``most_bytes`` is None: it is checked in pieces."""
    try:
        if most_bytes is None:
            data = None
            with open_regular(path, _MOST_HASHED_BYTES, follow_links=False) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            data = read_regular(path, most_bytes, follow_links=False)
            found = hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}; copy the whole bundle folder again"
        ) from None
    if found != digest:
        raise BundleError(
            f"{path} has SHA-256 {found[:12]}…, the manifest says {digest[:12]}…: the file was changed; "
            "copy or export the bundle again"
        )
    return data
