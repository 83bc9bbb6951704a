"""Bundles that are damaged, forged and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattbit.errors import BundleError
from wattbit.serving.bundle import ControllerBundle, load_bundle
from wattbit.storage.strict_json import dump_json

FILES = ("calibration.json", "certificate.json", "manifest.json", "plans.json", "policy.npz", "profile.json")
EXTRA = {"report.html": b"<html></html>", "ppo.zip": b"PK"}


def refused(folder: Path, name: str = "") -> str:
    """The message with which the bundle in ``folder`` is refused; it is one line and names the file."""
    with pytest.raises(BundleError) as error:
        load_bundle(folder)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert name in message
    return message


def assert_equal(found: ControllerBundle, expected: ControllerBundle) -> None:
    assert replace(found, policy=None) == replace(expected, policy=None)
    assert (found.policy is None) == (expected.policy is None)
    if found.policy is not None and expected.policy is not None:
        assert found.policy.to_bytes() == expected.policy.to_bytes()


def resigned(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and sign it again, as a careful forger would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["manifest_sha256"]
    change(manifest)
    manifest["manifest_sha256"] = hashlib.sha256(dump_json(manifest).encode()).hexdigest()
    (folder / "manifest.json").write_bytes(dump_json(manifest).encode())


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Change a file, and sign the bundle again."""
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    resigned(folder, lambda manifest: manifest["files"].update({name: digest}))


def edited(folder: Path, name: str, path: list[Any], value: Any) -> None:
    """Change one value in a JSON file, and sign the bundle again."""
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    rewritten(folder, name, json.dumps(data).encode())
