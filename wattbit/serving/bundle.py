"""The bundle: the folder a controller is loaded from.

========================  ==========================================================================
``manifest.json``         format version, package versions, device, model fingerprint, SHA-256 of every file
                          and of the manifest itself
``plans.json``            plans with energy, drop, verdict and provenance
``profile.json``          the profile the energies come from
``calibration.json``      activation ranges, so that a server quantizes as the certificate's data was
``certificate.json``      the certificates, one per tolerance
``policy.npz``            the learned policy (numpy, no pickle); absent if nothing was learned
``ppo.zip``               the agent, for resuming training; a serving process never opens it
``report.html``           the report
``manifest.sig``          an Ed25519 signature of ``manifest.json``; absent if no key was given
========================  ==========================================================================

Needs numpy only. Loading verifies every hash before anything is parsed, and proves again what follows from
something else in the bundle: verdicts from counts, energies from the profile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from wattbit.errors import BundleError, OutputError, WattbitError
from wattbit.judging.certificate import Certificate
from wattbit.judging.judgement import Verdict
from wattbit.plan import PrecisionPlan
from wattbit.policy import MLPPolicy
from wattbit.profile import ModelProfile, Provenance
from wattbit.serving.bundle_files import MANIFEST, read_files, write_files
from wattbit.storage.strict_json import dump_json, parse_json, require_number, require_unicode

BUNDLE_SCHEMA = 2

_REQUIRED = ("plans.json", "profile.json", "calibration.json", "certificate.json")
_EXTRA = ("ppo.zip", "report.html")
_OPTIONAL = ("policy.npz", *_EXTRA)
_MOST_JUDGEMENTS = 512
_MOST_PLANS = 4096
_MANIFEST_KEYS = {"model_fingerprint": str, "workload": dict, "versions": dict, "created": str}


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
        disagreements: Samples of ``certify`` whose prediction differs from the reference's, right or wrong;
            None if they were not counted.
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
    disagreements: int | None = None

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


def save_bundle(
    bundle: ControllerBundle,
    folder: Path,
    extra: Mapping[str, bytes] | None = None,
    *,
    signing_key: Any = None,
) -> None:
    """Write ``bundle`` to ``folder``, which appears whole or not at all and replaces an older one.

    Args:
        bundle: What to write.
        folder: Where to.
        extra: Further files by name: ``report.html``, ``ppo.zip``.
        signing_key: An Ed25519 private key to sign with: 32 bytes, PEM text, or of the package cryptography.

    Raises:
        BundleError: If the key is none, or the extra ``sign`` is not installed.
        OutputError: If the folder cannot be written, holds something else than a bundle, or a file is extra
            that no bundle has.
    """
    unknown = sorted({*(extra or {})} - {*_EXTRA})
    if unknown:
        raise OutputError(
            f"a bundle has no place for {unknown[0]!r}; its extra files are {', '.join(_EXTRA)}"
        )
    files = {
        "plans.json": dump_json({
            "schema": BUNDLE_SCHEMA,
            "plans": [_plan_record(plan) for plan in bundle.plans],
            "compared": [_plan_record(plan) for plan in bundle.compared],
        }).encode(),
        "profile.json": bundle.profile.to_json().encode(),
        "calibration.json": bundle.calibration_json.encode(),
        "certificate.json": dump_json({
            "schema": BUNDLE_SCHEMA,
            "certificates": [certificate.as_dict() for certificate in bundle.certificates],
        }).encode(),
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
    }
    write_files(folder, files, manifest, signing_key)


def load_bundle(folder: Path | str, *, public_key: Any = None) -> ControllerBundle:
    """Read a bundle, every file checked against its hash first.

    Args:
        folder: The folder.
        public_key: The Ed25519 public key that the bundle must be signed for, 32 bytes, PEM text, or of the
            package cryptography; None takes bundles from anybody.

    Raises:
        BundleError: If a file is missing, changed or garbled, what it says does not follow from what it rests
            on, or the signature is not the key's; the message names the file.
    """
    folder = Path(folder)
    manifest, files = read_files(folder, BUNDLE_SCHEMA, (*_REQUIRED, *_OPTIONAL), _EXTRA, public_key)
    missing = [name for name in _REQUIRED if name not in files]
    if missing:
        raise BundleError(f"{folder / MANIFEST} lists no {missing[0]}; export the bundle again")
    for key, kind in _MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{folder / MANIFEST} lacks a sound {key!r}; export the bundle again")
    for name, data in {MANIFEST: dump_json(manifest).encode(), **files}.items():
        if name.endswith(".json"):
            _parse(folder, name, lambda data=data: require_unicode(data))
    profile = _parse(folder, "profile.json", lambda: ModelProfile.from_json(files["profile.json"].decode()))
    if (manifest.get("device"), manifest.get("provenance")) != (profile.device, profile.provenance):
        raise BundleError(f"{folder / MANIFEST} and its profile differ in device; export the bundle again")
    fingerprint = manifest["model_fingerprint"]
    certificates = _parse(
        folder, "certificate.json", lambda: _certificates_from(files["certificate.json"], fingerprint)
    )
    plans, compared = _parse(
        folder, "plans.json", lambda: _plans_from(files["plans.json"], profile, certificates)
    )
    return ControllerBundle(
        plans=plans,
        compared=compared,
        profile=profile,
        calibration_json=_parse(folder, "calibration.json", files["calibration.json"].decode),
        certificates=certificates,
        policy=_parse(folder, "policy.npz", lambda: _policy_from(files.get("policy.npz"), profile)),
        model_fingerprint=fingerprint,
        workload=manifest["workload"],
        versions=manifest["versions"],
        created=manifest["created"],
    )


def _plans_from(
    data: bytes, profile: ModelProfile, certificates: Sequence[Certificate]
) -> tuple[tuple[BundledPlan, ...], tuple[BundledPlan, ...]]:
    lists = parse_json(data)
    if lists["schema"] != BUNDLE_SCHEMA:
        raise ValueError(f"its schema is {lists['schema']!r:.80}, not {BUNDLE_SCHEMA}")
    if len(lists["plans"]) + len(lists["compared"]) > _MOST_PLANS:
        raise ValueError(f"it has more than {_MOST_PLANS} plans")
    # What is deployed may carry the saving that was metered end to end, which no sum of layers gives.
    summed = profile.provenance == "modelled"
    plans = tuple(_plan_from(record, profile, summed) for record in lists["plans"])
    for plan in plans:
        if not any(_holds(plan, certificate, profile) for certificate in certificates):
            raise ValueError(
                f"plan {plan.plan.plan_id} for {plan.tolerance_pp:g} pp (verdict {plan.verdict!r}) is passed "
                "by no certificate whose figures and limits it has"
            )
    return plans, tuple(_plan_from(record, profile, summed=True) for record in lists["compared"])


def _holds(plan: BundledPlan, certificate: Certificate, profile: ModelProfile) -> bool:
    """Whether ``certificate`` passed the plan with the drop it states, and its hard limits hold."""
    if not plan.certified_by(certificate):
        return False
    drop_pp = certificate.judgements[plan.plan.plan_id].drop_pp
    same = drop_pp is not None and plan.drop_pp is not None and _close(plan.drop_pp, drop_pp)
    return same and not certificate.guardrail.violations(
        plan.latency_ms, profile.plan_memory_bytes(plan.plan)
    )


def _certificates_from(data: bytes, fingerprint: str) -> tuple[Certificate, ...]:
    document = parse_json(data)
    if document["schema"] != BUNDLE_SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r:.80}, not {BUNDLE_SCHEMA}")
    records = document["certificates"]
    # Proving a judgement again takes a while.
    if sum(1 + len(record["judgements"]) for record in records) > _MOST_JUDGEMENTS:
        raise ValueError(f"it has more than {_MOST_JUDGEMENTS} certificates and judgements")
    found = tuple(map(Certificate.from_dict, records))
    for certificate in found:
        if certificate.model_fingerprint != fingerprint:
            raise ValueError(
                f"it is for model {certificate.model_fingerprint[:12]}…, not {fingerprint[:12]}…"
            )
    return found


def _policy_from(data: bytes | None, profile: ModelProfile) -> MLPPolicy | None:
    policy = None if data is None else MLPPolicy.from_bytes(data)
    if policy is not None and policy.precisions != profile.precisions:
        raise ValueError(f"it chooses among {policy.precisions}, the profile has {profile.precisions}")
    return policy


def _parse(folder: Path, name: str, read: Any) -> Any:
    try:
        return read()
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
        WattbitError,
    ) as error:  # fmt: skip
        why = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{folder / name} is garbled ({why:.400}); export the bundle again") from None


def _plan_record(plan: BundledPlan) -> dict[str, Any]:
    return {**asdict(plan), "plan": dict(plan.plan), "plan_id": plan.plan.plan_id}


def _plan_from(record: Mapping[str, Any], profile: ModelProfile, summed: bool) -> BundledPlan:
    fields = {name: value for name, value in record.items() if name != "plan_id"}
    plan = profile.require_plan(PrecisionPlan(fields.pop("plan")))
    if plan.plan_id != record["plan_id"]:
        raise ValueError(f"plan {record['plan_id']!r:.80} does not have the layers it says")
    found = BundledPlan(plan=plan, **fields)
    if found.provenance != profile.provenance:
        raise ValueError(f"plan {plan.plan_id} has {found.provenance!r:.80} energy, not {profile.provenance}")
    if not isinstance(found.method, str) or found.verdict not in (None, *get_args(Verdict)):
        raise ValueError(
            f"plan {plan.plan_id} has method {found.method!r:.80}, verdict {found.verdict!r:.80}"
        )
    counted = found.disagreements
    if counted is not None and (isinstance(counted, bool) or not isinstance(counted, int) or counted < 0):
        raise ValueError(f"disagreements {counted!r:.80} of plan {plan.plan_id} must be a whole number")
    for name in ("tolerance_pp", "energy_j", "latency_ms"):
        require_number(getattr(found, name), f"{name} of plan {plan.plan_id}")
    for name, value in (("saving", 1.0 - found.saving), ("drop_pp", 100.0 - (found.drop_pp or 0.0))):
        require_number(value, f"{name} of plan {plan.plan_id}, taken from its largest value,")
    expected = {"latency_ms": profile.plan_latency_ms(plan), "saving": profile.saving(found.energy_j)}
    expected |= {"energy_j": profile.plan_energy_j(plan)} if summed else {}
    for name, value in expected.items():
        if not _close(getattr(found, name), value):
            raise ValueError(
                f"{name} of plan {plan.plan_id} is {getattr(found, name)}, the profile gives {value}"
            )
    return found


def _close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-12)
