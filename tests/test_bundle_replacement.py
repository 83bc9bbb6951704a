"""A bundle that is replaced while others load it, and exports that are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle

EXPORT = """
import sys
from dataclasses import replace
from pathlib import Path
import wattbit.serving.bundle_files as files
from wattbit.serving.bundle import load_bundle, save_bundle
folder = Path(sys.argv[1])
if sys.argv[2] == "moved":
    files.swapped = lambda new, folder: False
bundle = load_bundle(folder)
print("ready", flush=True)
for number in range(100_000):
    save_bundle(replace(bundle, created=str(number)), folder)
"""


def exporter(folder: Path, how: str) -> subprocess.Popen[str]:
    """A process that exports to ``folder`` again and again, once it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("how", ["swapped", "moved"])
def test_no_load_fails_while_a_bundle_is_exported_again(bundle_dir: Path, how: str) -> None:
    with exporter(bundle_dir, how) as process:
        try:
            seen = {load_bundle(bundle_dir).created for _ in range(500)}
        finally:
            process.kill()
    assert len(seen) > 1


def test_what_a_killed_export_left_is_gone_after_the_next(bundle: ControllerBundle, bundle_dir: Path) -> None:
    other = bundle_dir.parent / ".bundle-of-mine"
    other.mkdir()
    for _ in range(5):
        with exporter(bundle_dir, "swapped") as process:
            process.kill()
    (bundle_dir.parent / ".bundle-abcd1234" / "new").mkdir(parents=True)
    save_bundle(bundle, bundle_dir)
    assert sorted(path.name for path in bundle_dir.parent.iterdir()) == [".bundle-of-mine", "bundle"]
    load_bundle(bundle_dir)


def test_an_export_removes_nothing_of_one_under_way(bundle: ControllerBundle, bundle_dir: Path) -> None:
    with exporter(bundle_dir, "swapped") as process:
        try:
            for _ in range(50):
                save_bundle(bundle, bundle_dir)
            assert process.poll() is None
        finally:
            process.kill()
    load_bundle(bundle_dir)
