"""The bundle: the folder a controller is loaded from.

========================  ==========================================================================
``manifest.json``         format version, package versions, device, model fingerprint, SHA-256 of every file
``plans.json``            plans with energy, drop, verdict and provenance
``profile.json``          the profile the energies come from
``calibration.json``      activation ranges, so that a server quantizes as the certificate's data was
``certificate.json``      the certificates, one per tolerance
``policy.npz``            the learned policy (numpy, no pickle); absent if nothing was learned
``ppo.zip``               the agent, for resuming training; a serving process never opens it
``report.html``           the report
========================  ==========================================================================

Needs numpy only. Loading verifies every hash before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from wattbit.certificate import Certificate
from wattbit.energy.meter import Provenance
from wattbit.errors import BundleError, OutputError, WattbitError
from wattbit.plan import PrecisionPlan
from wattbit.policy import MLPPolicy
from wattbit.profile import ModelProfile

BUNDLE_SCHEMA = 1

_MANIFEST = "manifest.json"
_REQUIRED = ("plans.json", "profile.json", "calibration.json", "certificate.json")
_OPTIONAL = ("policy.npz", "ppo.zip", "report.html")


@dataclass(frozen=True, slots=True)
class BundledPlan:
    """A plan as a bundle carries it.

    Attributes:
        plan: Layer -> precision.
        tolerance_pp: The tolerance it was proposed for.
        method: How it was found.
        energy_j: Energy per inference, joules.
        saving: Share of the reference's energy that it saves.
        latency_ms: Time per inference.
        drop_pp: Drop observed on ``certify``; None if it was not run there.
        verdict: ``pass``, ``fail`` or ``inconclusive``; None if it was not judged.
        provenance: Where the energy comes from.
    """

    plan: PrecisionPlan
    tolerance_pp: float
    method: str
    energy_j: float
    saving: float
    latency_ms: float
    drop_pp: float | None
    verdict: str | None
    provenance: Provenance

    def certified_by(self, certificate: Certificate) -> bool:
        """True if ``certificate`` is for this plan's tolerance or a stricter one, and passed the plan."""
        fits = certificate.guardrail.tolerance_pp <= self.tolerance_pp
        return fits and self.verdict == "pass" and self.plan.plan_id in certificate.passed


@dataclass(frozen=True, slots=True)
class ControllerBundle:
    """Everything a controller needs.

    Attributes:
        plans: The deployed plan of each tolerance that has a certified one, the strictest tolerance first.
        compared: Every method's plan for every tolerance, for reports; never run by a controller.
        profile: The profile.
        calibration_json: The calibration as text (parsed by `wattbit.calibration`, which needs torch).
        certificates: One certificate per tolerance, the strictest first.
        policy: The learned policy; None if nothing was learned.
        model_fingerprint: The model all of this is valid for.
        workload: Name of the workload, and its settings, for `evaluate.py`.
        versions: Package versions when it was made.
        created: UTC time it was made, ISO 8601.
    """

    plans: tuple[BundledPlan, ...]
    compared: tuple[BundledPlan, ...]
    profile: ModelProfile
    calibration_json: str
    certificates: tuple[Certificate, ...]
    policy: MLPPolicy | None
    model_fingerprint: str
    workload: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


def save_bundle(bundle: ControllerBundle, folder: Path, extra: Mapping[str, bytes] | None = None) -> None:
    """Write ``bundle`` to ``folder``, which appears whole or not at all and replaces an older one.

    Args:
        bundle: What to write.
        folder: Where to.
        extra: Further files by name: ``report.html``, ``ppo.zip``.

    Raises:
        OutputError: If the folder cannot be written.
    """
    files = {
        "plans.json": _json({
            "schema": BUNDLE_SCHEMA,
            "plans": [_plan_record(plan) for plan in bundle.plans],
            "compared": [_plan_record(plan) for plan in bundle.compared],
        }),
        "profile.json": bundle.profile.to_json().encode(),
        "calibration.json": bundle.calibration_json.encode(),
        "certificate.json": _json({
            "schema": BUNDLE_SCHEMA,
            "certificates": [json.loads(certificate.to_json()) for certificate in bundle.certificates],
        }),
        **({"policy.npz": bundle.policy.to_bytes()} if bundle.policy else {}),
        **(extra or {}),
    }  # fmt: skip
    manifest = {
        "schema": BUNDLE_SCHEMA,
        "created": bundle.created,
        "versions": dict(bundle.versions),
        "device": bundle.profile.device,
        "provenance": bundle.profile.provenance,
        "model_fingerprint": bundle.model_fingerprint,
        "workload": dict(bundle.workload),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        temporary.chmod(0o755)
        for name, data in {**files, _MANIFEST: _json(manifest)}.items():
            (temporary / name).write_bytes(data)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write bundle {folder}: {error.strerror or error}; free space or choose another folder"
        ) from None


def load_bundle(folder: Path | str) -> ControllerBundle:
    """Read a bundle, every file checked against its hash first.

    Raises:
        BundleError: If a file is missing, changed or garbled; the message names it.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    files = {name: _read_verified(folder, name, digest) for name, digest in manifest["files"].items()}
    missing = [name for name in _REQUIRED if name not in files]
    if missing:
        raise BundleError(f"{folder / _MANIFEST} lists no {missing[0]}; export the bundle again")
    plans, compared = _parse(folder, "plans.json", lambda: _plans_from(files))
    certificates = _parse(folder, "certificate.json", lambda: _certificates_from(files["certificate.json"]))
    policy = files.get("policy.npz")
    return ControllerBundle(
        plans=plans,
        compared=compared,
        profile=_parse(folder, "profile.json", lambda: _profile_from(files)),
        calibration_json=files["calibration.json"].decode(),
        certificates=certificates,
        policy=None if policy is None else _parse(folder, "policy.npz", lambda: MLPPolicy.from_bytes(policy)),
        model_fingerprint=manifest["model_fingerprint"],
        workload=manifest["workload"],
        versions=manifest["versions"],
        created=manifest["created"],
    )


def _profile_from(files: Mapping[str, bytes]) -> ModelProfile:
    return ModelProfile.from_json(files["profile.json"].decode())


def _plans_from(files: Mapping[str, bytes]) -> tuple[tuple[BundledPlan, ...], tuple[BundledPlan, ...]]:
    data = json.loads(files["plans.json"])
    layers = _profile_from(files).layer_names
    plans, compared = (tuple(_plan_from(record, layers) for record in data[key]) for key in ("plans", "compared"))
    return plans, compared


def _certificates_from(data: bytes) -> tuple[Certificate, ...]:
    return tuple(Certificate.from_json(json.dumps(one)) for one in json.loads(data)["certificates"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}; give the bundle folder that train.py wrote"
        ) from None
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({error}); export the bundle again") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != BUNDLE_SCHEMA:
        raise BundleError(
            f"{path} has schema {schema!r}, this version reads {BUNDLE_SCHEMA}; export the bundle again"
        )
    wanted = {"files": dict, "model_fingerprint": str, "workload": dict, "versions": dict, "created": str}
    for key, kind in wanted.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{path} lacks a sound {key!r}; export the bundle again")
    return cast(dict[str, Any], manifest)


def _read_verified(folder: Path, name: str, digest: str) -> bytes:
    if name not in (*_REQUIRED, *_OPTIONAL):
        raise BundleError(f"{folder / _MANIFEST} lists {name!r}, which no bundle has; export the bundle again")
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; copy the whole bundle folder again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BundleError(
            f"{path} has SHA-256 {found[:12]}…, the manifest says {str(digest)[:12]}…: the file was changed; "
            "copy or export the bundle again"
        )
    return data


def _parse(folder: Path, name: str, read: Any) -> Any:
    try:
        return read()
    except (ValueError, KeyError, TypeError, WattbitError) as error:
        raise BundleError(f"{folder / name} is garbled ({error}); export the bundle again") from None


def _plan_record(plan: BundledPlan) -> dict[str, Any]:
    return {**asdict(plan), "plan": dict(plan.plan), "plan_id": plan.plan.plan_id}


def _plan_from(record: Mapping[str, Any], layers: Sequence[str]) -> BundledPlan:
    fields = {name: value for name, value in record.items() if name != "plan_id"}
    plan = PrecisionPlan(fields.pop("plan")).require_layers(layers)
    if plan.plan_id != record["plan_id"]:
        raise ValueError(f"plan {record['plan_id']} does not have the layers it says")
    return BundledPlan(plan=plan, **fields)


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
