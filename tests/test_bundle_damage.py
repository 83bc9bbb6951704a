"""No damage to a bundle goes unnoticed, not even a forged one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from bundles import FILES, edited, refused, resigned, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle

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
        b'{"schema": 3}',
        b'{"schema": 2}',
        b'{"schema": 2, "files": {}}',
        b'{"schema": 2, "created": NaN}',
        b'{"schema": 2, "created": 1e999}',
        b"[" * 100_000,
    ],
)
def test_a_garbled_manifest_is_refused(bundle_dir: Path, content: bytes) -> None:
    (bundle_dir / "manifest.json").write_bytes(content)
    refused(bundle_dir, "manifest.json")


def test_a_bundle_of_an_earlier_format_is_refused_with_the_reason_and_the_remedy(bundle_dir: Path) -> None:
    resigned(bundle_dir, lambda manifest: manifest.update(schema=1))
    assert refused(bundle_dir, "manifest.json").endswith(
        "has format version 1, in which models had other fingerprints; this wattbit reads version 2; "
        "export the bundle again"
    )


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
    assert bundle.policy is not None
    policy = replace(bundle.policy, precisions=("fp32", "int8", "int6", "int4", "int2"))
    rewritten(bundle_dir, "policy.npz", policy.to_bytes())
    assert "the profile has" in refused(bundle_dir, "policy.npz")
