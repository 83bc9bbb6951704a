"""A folder of files that a manifest of hashes holds together; `wattbit.serving.bundle` says what is in them.

Hashes find damage and mixed-up files. They do not stop a forger, who can compute them too.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wattbit.errors import BundleError, OutputError
from wattbit.storage.strict_json import dump_json, parse_json

MANIFEST = "manifest.json"

_OWN_HASH = "manifest_sha256"
_EARLIER = {1: ", in which models had other fingerprints"}


def write_files(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write ``files`` and their manifest to ``folder``, which appears whole or not at all.

    Args:
        folder: Where to; an older bundle is replaced.
        files: Contents by file name.
        manifest: What the manifest says besides the hashes, JSON values only.

    Raises:
        OutputError: If the folder cannot be written, or holds something else than a bundle.
    """
    unsigned = {
        **manifest,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    try:
        _write_folder(folder.resolve(), {**files, MANIFEST: _signed(unsigned)})
    except OSError as error:
        raise OutputError(
            f"cannot write bundle {folder}: {error.strerror or error}; free space or choose another folder"
        ) from None


def read_files(folder: Path, schema: int, known: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest in ``folder``, and the files it lists, each checked against its hash.

    Args:
        folder: The folder.
        schema: The manifest's schema.
        known: Names that files may have.

    Raises:
        BundleError: If a file is missing or was changed; the message names it.
    """
    manifest = _read_manifest(folder, schema)
    files = {}
    for name, digest in manifest["files"].items():
        if name not in known:
            raise BundleError(
                f"{folder / MANIFEST} lists {name!r:.80}, which no bundle has; export the bundle again"
            )
        files[name] = _read_verified(folder / name, str(digest))
    return manifest, files


def _signed(manifest: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(dump_json(manifest).encode()).hexdigest()
    return dump_json({**manifest, _OWN_HASH: digest}).encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` beside ``folder``, then put them in its place."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose a new or empty folder for the bundle")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise OutputError(f"{folder} holds something else than a bundle; choose a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = workshop / "new", workshop / "old"
    try:
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
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


def _read_manifest(folder: Path, schema: int) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
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
        sound = _signed(unsigned) == data
    except ValueError:
        sound = False
    if not sound:
        raise BundleError(f"{path} does not match its own hash: it was changed; export the bundle again")
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path} lists no files; export the bundle again")
    return unsigned


def _read_verified(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}; copy the whole bundle folder again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BundleError(
            f"{path} has SHA-256 {found[:12]}…, the manifest says {digest[:12]}…: the file was changed; "
            "copy or export the bundle again"
        )
    return data
