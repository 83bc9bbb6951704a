"""Bundles are written whole or not at all."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import EXTRA, FILES, assert_equal

from wattbit.errors import OutputError
from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle

# --- round trip -------------------------------------------------------------------------------------------


def test_a_bundle_survives_its_folder(bundle: ControllerBundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "new" / "bundle", EXTRA)
    assert sorted(path.name for path in (tmp_path / "new" / "bundle").iterdir()) == sorted([*FILES, *EXTRA])
    assert_equal(load_bundle(tmp_path / "new" / "bundle"), bundle)
    assert_equal(load_bundle(str(tmp_path / "new" / "bundle")), bundle)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]


def test_a_bundle_without_plans_and_policy_survives_too(bundle: ControllerBundle, tmp_path: Path) -> None:
    bare = replace(
        bundle, plans=(), compared=(), certificates=(), policy=None, workload={}, versions={}, created=""
    )
    save_bundle(bare, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "policy.npz").exists()
    assert_equal(load_bundle(tmp_path / "bundle"), bare)


def test_equal_bundles_have_equal_files(bundle: ControllerBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_bundle(bundle, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_file_of_a_bundle_holds_a_pickle(bundle_dir: Path) -> None:
    for path in bundle_dir.iterdir():
        assert b"pickle" not in path.read_bytes()
    with np.load(bundle_dir / "policy.npz", allow_pickle=False) as policy:
        assert all(policy[name].dtype != object for name in policy.files)


# --- writing ----------------------------------------------------------------------------------------------


def cannot_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that cannot exchange two folders at once: they are moved one after the other."""
    monkeypatch.setattr("wattbit.serving.bundle_files.swapped", lambda new, folder: False)


def test_an_older_bundle_is_replaced(bundle: ControllerBundle, bundle_dir: Path) -> None:
    save_bundle(bundle, bundle_dir, EXTRA)
    save_bundle(replace(bundle, created="later"), bundle_dir)
    assert load_bundle(bundle_dir).created == "later"
    assert not (bundle_dir / "report.html").exists()
    assert [path.name for path in bundle_dir.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_is_filled(bundle: ControllerBundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path)
    assert_equal(load_bundle(tmp_path), bundle)


def test_a_link_to_a_bundle_stays_a_link(bundle: ControllerBundle, bundle_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(bundle_dir)
    save_bundle(replace(bundle, created="later"), link)
    assert link.is_symlink()
    assert load_bundle(bundle_dir).created == "later"


def test_what_is_no_bundle_is_never_overwritten(bundle: ControllerBundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="holds something else than a bundle; choose a new or empty folder"):
        save_bundle(bundle, tmp_path)
    with pytest.raises(OutputError, match=r"thesis.txt is a file; choose a new or empty folder"):
        save_bundle(bundle, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("fails_at", range(9))
def test_a_write_that_fails_leaves_the_old_bundle_or_nothing(
    bundle: ControllerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    folder = tmp_path / "bundle"
    save_bundle(replace(bundle, created="earlier"), folder)
    cannot_swap(monkeypatch)
    steps = 0
    write, move = Path.write_bytes, Path.replace

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == fails_at + 1:
            raise OSError(28, "No space left on device")

    def write_step(path: Path, data: bytes) -> int:
        step()
        return write(path, data)

    def move_step(path: Path, target: Path) -> Path:
        step()
        return move(path, target)

    monkeypatch.setattr(Path, "write_bytes", write_step)
    monkeypatch.setattr(Path, "replace", move_step)
    if fails_at < 8:  # six files, and two moves
        with pytest.raises(OutputError, match=r"cannot write bundle .*: No space left on device; free space"):
            save_bundle(bundle, folder)
        assert load_bundle(folder).created == "earlier"
    else:
        save_bundle(bundle, folder)
        assert load_bundle(folder).created == bundle.created
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_first_bundle_that_cannot_be_put_in_place_leaves_nothing(
    bundle: ControllerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        save_bundle(bundle, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_old_bundle_that_cannot_be_put_back_is_not_deleted(
    bundle: ControllerBundle, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cannot_swap(monkeypatch)
    move = Path.replace

    def only_away(path: Path, target: Path) -> Path:
        if target == bundle_dir.resolve():
            raise OSError(5, "Input/output error")
        return move(path, target)

    monkeypatch.setattr(Path, "replace", only_away)
    with pytest.raises(OutputError):
        save_bundle(bundle, bundle_dir)
    (workshop,) = bundle_dir.parent.iterdir()
    assert_equal(load_bundle(workshop / "old"), bundle)


def test_a_parent_that_cannot_hold_a_folder_is_an_output_error(
    bundle: ControllerBundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot write bundle .*file/bundle: .*; free space") as error:
        save_bundle(bundle, tmp_path / "file" / "bundle")
    assert len(str(error.value).splitlines()) == 1


def test_a_parent_that_is_not_writable_is_an_output_error(
    bundle: ControllerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):  # whoever may write anywhere needs another obstacle
        denied = PermissionError(13, "Permission denied")
        monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(denied))
    with pytest.raises(OutputError, match="Permission denied; free space or choose another folder"):
        save_bundle(bundle, tmp_path / "bundle")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", "../escape", "manifest.json", "plans.json"])
def test_a_file_that_no_bundle_has_is_not_taken(bundle: ControllerBundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        OutputError, match=r"a bundle has no place for .*; its extra files are ppo.zip, report.html"
    ):
        save_bundle(bundle, tmp_path / "bundle", {name: b""})
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_json_cannot_hold_is_not_begun(bundle: ControllerBundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_bundle(replace(bundle, workload={"noise": math.nan}), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
