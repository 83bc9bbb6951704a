"""A forger who computes the hashes again gets no plan to run that its counts do not certify."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import edited, refused, rewritten
from outcomes import outcomes

from wattbit.errors import BundleError
from wattbit.guardrail import Guardrail
from wattbit.judging.certificate import Certificate
from wattbit.judging.judgement import CandidatePlan, certify_sequence
from wattbit.plan import PrecisionPlan
from wattbit.serving.bundle import ControllerBundle, load_bundle, save_bundle
from wattbit.serving.runtime import PrecisionRuntime


def judgement_path(folder: Path, *last: str) -> list[Any]:
    data = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    plan_id = next(iter(data["certificates"][0]["judgements"]))
    return ["certificates", 0, "judgements", plan_id, *last]


@pytest.mark.parametrize(
    ("last", "value"),
    [
        (("tolerance_pp",), 99),
        (("tolerance_pp",), 3.0),
        (("counts",), None),
        (("counts", "samples"), 10_000),
        (("counts", "samples"), 10**400),
        (("counts", "reference_only"), -1),
        (("counts", "reference_only"), 60),
        (("counts", "plan_only"), True),
        (("samples",), 1),
        (("drop_pp",), -5),
        (("upper_pp",), -5),
        (("lower_pp",), -50),
        (("p_value",), 0.0009),
        (("p_value",), None),
        (("class_counts",), {"3": {"samples": 5, "reference_only": 0, "plan_only": 0}}),
        (("class_counts",), [1]),
    ],
)
def test_a_judgement_is_proved_again_from_its_counts(
    bundle_dir: Path, last: tuple[str, ...], value: Any
) -> None:
    edited(bundle_dir, "certificate.json", judgement_path(bundle_dir, *last), value)
    assert "export the bundle again" in refused(bundle_dir, "certificate.json")


def test_a_pass_needs_the_samples_that_the_certificate_is_for(bundle_dir: Path) -> None:
    edited(bundle_dir, "certificate.json", ["certificates", 0, "samples"], 5000)
    assert "marked as passed" in refused(bundle_dir, "certificate.json")


def test_a_limit_of_a_class_is_proved_from_that_class() -> None:
    reference, plan = outcomes(5000, 5, 5)
    guardrail = Guardrail(1.0, per_class_pp={1: 2.5})
    labels = np.arange(5000) % 2
    found = certify_sequence(reference, [CandidatePlan("a", plan)], labels, guardrail)
    sound = Certificate(guardrail, found, "m", "d", 5000)
    assert Certificate.from_json(sound.to_json()) == sound
    for classes in ({}, {1: replace(found["a"].class_counts[1], reference_only=90)}):
        unproved = replace(sound, judgements={"a": replace(found["a"], class_counts=classes)})
        with pytest.raises(BundleError, match="marked as passed"):
            Certificate.from_json(unproved.to_json())


def test_a_pass_on_scores_leaves_nothing_to_prove_it_from_and_is_refused() -> None:
    scores = np.full(5000, 0.5)
    found = certify_sequence(scores, [CandidatePlan("a", scores)], None, Guardrail(1.0))
    assert found["a"].verdict == "pass"
    with pytest.raises(BundleError, match="no paired counts"):
        Certificate.from_json(Certificate(Guardrail(1.0), found, "m", "d", 5000).to_json())


@pytest.mark.parametrize("limit", [("max_latency_ms", 1e-9), ("max_memory_bytes", 1)])
def test_a_plan_beyond_a_hard_limit_of_its_certificate_is_refused(
    bundle_dir: Path, limit: tuple[str, float]
) -> None:
    edited(bundle_dir, "certificate.json", ["certificates", 0, "guardrail", limit[0]], limit[1])
    assert "passed by no certificate" in refused(bundle_dir, "plans.json")


@pytest.mark.parametrize("plans", ["plans", "compared"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy_j", 1e-12),
        ("saving", 0.99),
        ("latency_ms", 0.0),
        ("verdict", "passed"),
        ("drop_pp", "0"),
        ("drop_pp", 1e999),
        ("method", None),
        ("tolerance_pp", 10**400),
    ],
)
def test_a_figure_that_the_profile_does_not_give_is_refused(
    bundle: ControllerBundle, bundle_dir: Path, plans: str, name: str, value: Any
) -> None:
    save_bundle(replace(bundle, compared=bundle.plans), bundle_dir)
    edited(bundle_dir, "plans.json", [plans, 0, name], value)
    refused(bundle_dir, "plans.json")


def test_a_deployed_drop_is_the_certificates(bundle_dir: Path) -> None:
    edited(bundle_dir, "plans.json", ["plans", 0, "drop_pp"], -1.0)
    assert "passed by no certificate" in refused(bundle_dir, "plans.json")


# --- files ------------------------------------------------------------------------------------------------


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**32)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "loop": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
    "huge": huge,
}


@pytest.mark.parametrize("name", ["manifest.json", "plans.json", "policy.npz"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_of_bounded_size_are_read(bundle_dir: Path, name: str, kind: str) -> None:
    (bundle_dir / name).unlink()
    KINDS[kind](bundle_dir / name)
    assert "cannot read" in refused(bundle_dir, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_file_is_regular_and_bounded_or_an_error(tmp_path: Path, kind: str) -> None:
    from wattbit.errors import PlanError

    KINDS[kind](tmp_path / "plan.json")
    with pytest.raises(PlanError):
        PrecisionPlan.read(tmp_path / "plan.json", ["stem"])


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1' + b"0" * 400 + b"}",
        b"[" * 5000 + b"]" * 5000,
        b'{"schema": 2, "schema": 2}',
        b'{"plans": "\\ud800"}',
        b"[" + b"[]," * 1_000_000 + b"0]",
    ],
)
@pytest.mark.parametrize("name", ["plans.json", "profile.json", "certificate.json"])
def test_numbers_nesting_and_texts_beyond_bounds_are_one_line(
    bundle_dir: Path, name: str, text: bytes
) -> None:
    rewritten(bundle_dir, name, text)
    assert "is garbled" in refused(bundle_dir, name)


def archive(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def with_array(folder: Path, name: str, value: Any) -> bytes:
    with np.load(folder / "policy.npz") as file:
        return archive(**{**dict(file), name: value})


def test_a_policy_that_unpacks_to_gigabytes_is_refused_before_it_does(bundle_dir: Path) -> None:
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("weight_0.npy", "w") as member,
    ):
        for _ in range(64):
            member.write(bytes(2**20))
    rewritten(bundle_dir, "policy.npz", content.getvalue())
    assert "above the limit" in refused(bundle_dir, "policy.npz")


def test_a_header_that_states_more_than_there_is_is_refused(bundle_dir: Path) -> None:
    content, member = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2**30,)})
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("weight_0.npy", member.getvalue())
    rewritten(bundle_dir, "policy.npz", content.getvalue())
    assert "states float32" in refused(bundle_dir, "policy.npz")


@pytest.mark.parametrize("dtype", ["complex64", "U8", "float64", "int64"])
def test_weights_are_real_numbers_of_32_bits(bundle: ControllerBundle, bundle_dir: Path, dtype: str) -> None:
    assert bundle.policy is not None
    weights = bundle.policy.weights[0].astype(dtype)
    rewritten(bundle_dir, "policy.npz", with_array(bundle_dir, "weight_0", weights))
    assert "must be float32" in refused(bundle_dir, "policy.npz")


# --- signatures -------------------------------------------------------------------------------------------


def test_with_a_key_only_what_it_signed_is_loaded(bundle: ControllerBundle, tmp_path: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    mine, other = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    save_bundle(bundle, tmp_path / "bundle", signing_key=mine)
    for key in (mine.public_key(), mine.public_key().public_bytes_raw()):
        assert load_bundle(tmp_path / "bundle", public_key=key).created == bundle.created
    load_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="not the signature"):
        load_bundle(tmp_path / "bundle", public_key=other.public_key())
    with pytest.raises(BundleError, match="no Ed25519 key"):
        load_bundle(tmp_path / "bundle", public_key=b"short")
    # A forger has the hashes right, but not the signature.
    edited(tmp_path / "bundle", "manifest.json", ["created"], "later")
    with pytest.raises(BundleError, match="not the signature"):
        load_bundle(tmp_path / "bundle", public_key=mine.public_key())
    save_bundle(bundle, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"cannot read signature .*manifest\.sig"):
        load_bundle(tmp_path / "bundle", public_key=mine.public_key())


def test_a_runtime_takes_only_signed_bundles_if_it_has_a_key(
    bundle: ControllerBundle, bundle_dir: Path, conv_model: Any
) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    key = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(BundleError, match="cannot read signature"):
        PrecisionRuntime.load(bundle_dir, conv_model, public_key=key.public_key())
    save_bundle(bundle, bundle_dir, signing_key=key)
    PrecisionRuntime.load(bundle_dir, conv_model, public_key=key.public_key()).close()
