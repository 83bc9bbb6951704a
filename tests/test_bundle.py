"""Bundles: written whole or not at all, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattbit.errors import BundleError, OutputError
from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle
from wattbit.serving.bundle_files import json_bytes, parse_json

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
    if found.policy is not None:
        assert found.policy.to_bytes() == expected.policy.to_bytes()


def resigned(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and sign it again, as a careful forger would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["manifest_sha256"]
    change(manifest)
    manifest["manifest_sha256"] = hashlib.sha256(json_bytes(manifest)).hexdigest()
    (folder / "manifest.json").write_bytes(json_bytes(manifest))


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
    steps = 0
    write, move = Path.write_bytes, Path.replace

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == fails_at + 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", lambda path, data: (step(), write(path, data))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (step(), move(path, target))[1])
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


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).unlink()
    assert "cannot read" in refused(bundle_dir, name)


@pytest.mark.parametrize("name", FILES)
def test_an_emptied_file_is_named(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).write_bytes(b"")
    refused(bundle_dir, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_became_a_folder_is_named(bundle_dir: Path, name: str) -> None:
    (bundle_dir / name).unlink()
    (bundle_dir / name).mkdir()
    refused(bundle_dir, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_bundle_is_named(bundle: ControllerBundle, bundle_dir: Path, name: str) -> None:
    other = replace(
        bundle,
        plans=(),
        certificates=(),
        policy=tiny.random_policy(bundle.profile, seed=9),
        model_fingerprint="x",
        profile=replace(bundle.profile, device="other"),
        calibration_json=bundle.calibration_json + " ",
    )
    save_bundle(other, bundle_dir.parent / "other")
    shutil.copy(bundle_dir.parent / "other" / name, bundle_dir / name)
    # Another manifest is sound in itself: then the files do not fit it.
    refused(bundle_dir, "calibration.json" if name == "manifest.json" else name)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_changed_byte_of_any_file_is_found(bundle_dir: Path, name: str, data: st.DataObject) -> None:
    path = bundle_dir / name
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[data.draw(st.integers(0, len(sound) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(bytes(damaged))
        refused(bundle_dir, name)
        path.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
        refused(bundle_dir, name)
        path.write_bytes(sound + b"\n")
        refused(bundle_dir, name)
    finally:
        path.write_bytes(sound)


def test_a_folder_that_is_no_bundle_is_told_what_to_give(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        assert "give the bundle folder that train.py wrote" in refused(folder, "manifest.json")
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused(tmp_path / "file", "manifest.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b'{"schema": 2}',
        b'{"schema": 1}',
        b'{"schema": 1, "files": {}}',
        b'{"schema": 1, "created": NaN}',
        b'{"schema": 1, "created": 1e999}',
        b"[" * 100_000,
    ],
)
def test_a_garbled_manifest_is_refused(bundle_dir: Path, content: bytes) -> None:
    (bundle_dir / "manifest.json").write_bytes(content)
    refused(bundle_dir, "manifest.json")


# --- forgeries: sound hashes, unsound contents ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(files=[]), "lists no files"),
        (lambda manifest: manifest["files"].pop("profile.json"), "lists no profile.json"),
        (lambda manifest: manifest["files"].update({"../../etc/passwd": "0"}), "which no bundle has"),
        (lambda manifest: manifest["files"].update({"plans.json": 3}), "the manifest says 3"),
        (lambda manifest: manifest.pop("workload"), "lacks a sound 'workload'"),
        (lambda manifest: manifest.update(model_fingerprint=7), "lacks a sound 'model_fingerprint'"),
        (lambda manifest: manifest.update(versions=None), "lacks a sound 'versions'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    bundle_dir: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    resigned(bundle_dir, change)
    assert message in refused(bundle_dir)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b'"a"', b"{", b"[" * 100_000])
def test_garbled_contents_are_named_even_if_their_hash_is_right(
    bundle_dir: Path, name: str, content: bytes
) -> None:
    rewritten(bundle_dir, name, content)
    if name == "calibration.json" and content != b"\xff":
        load_bundle(bundle_dir)  # what it says is read where torch is
    else:
        assert "is garbled" in refused(bundle_dir, name)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("plans.json", ["plans", 0, "plan"], ["int8"]),
        ("plans.json", ["plans", 0, "plan", "stem"], "int4"),
        ("plans.json", ["plans", 0, "plan", "stem"], "int2"),
        ("plans.json", ["plans", 0, "plan", "tail"], "int8"),
        ("plans.json", ["plans", 0, "plan_id"], "0"),
        ("plans.json", ["plans", 0, "energy_j"], "1"),
        ("plans.json", ["plans", 0, "energy_j"], math.nan),
        ("plans.json", ["plans", 0, "tolerance_pp"], None),
        ("plans.json", ["plans", 0, "tolerance_pp"], -1.0),
        ("plans.json", ["plans", 0, "provenance"], "measured"),
        ("plans.json", ["plans", 0, "colour"], "blue"),
        ("plans.json", ["compared"], 3),
        ("certificate.json", ["certificates", 0, "model_fingerprint"], "0" * 64),
        ("certificate.json", ["certificates", 0, "samples"], -1),
        ("profile.json", ["precisions"], ["fp32"]),
        ("profile.json", ["layers", 0, "costs", "int8", "energy_j"], 0),
    ],
)
def test_contents_that_contradict_themselves_are_named(
    bundle_dir: Path, name: str, path: list[Any], value: Any
) -> None:
    edited(bundle_dir, name, path, value)
    assert "is garbled" in refused(bundle_dir, name)


def test_a_plan_for_a_precision_its_layer_lacks_is_refused(bundle_dir: Path) -> None:
    data = json.loads((bundle_dir / "profile.json").read_text(encoding="utf-8"))
    del data["layers"][0]["costs"]["bf16"]
    rewritten(bundle_dir, "profile.json", json.dumps(data).encode())
    assert "layer 'stem' cannot run at 'bf16'" in refused(bundle_dir, "plans.json")


def test_a_policy_for_other_precisions_is_refused(bundle: ControllerBundle, bundle_dir: Path) -> None:
    policy = replace(bundle.policy, precisions=("fp32", "int8", "int6", "int4", "int2"))
    rewritten(bundle_dir, "policy.npz", policy.to_bytes())
    assert "the profile has" in refused(bundle_dir, "policy.npz")


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
@settings(deadline=None, max_examples=50)
def test_json_files_are_read_back_as_written(value: Any) -> None:
    assert parse_json(json_bytes(value)) == value
    assert json_bytes(parse_json(json_bytes(value))) == json_bytes(value)
