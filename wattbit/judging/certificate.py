"""The certificate: judgements of plans, with what they were made on, as a value and as JSON.

Plans are judged in `wattbit.judging.judgement`. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from wattbit.errors import BundleError, WattbitError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import Judgement, Verdict
from wattbit.judging.noninferiority import PairedCounts, accepts, lower_bound_pp, p_value, upper_bound_pp
from wattbit.storage.strict_json import dump_json, parse_json

CERTIFICATE_SCHEMA = 1

_MOST_SAMPLES = 10**7
"""More than any split has; tests of more would take long."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was certified, against which limits, for which model, on which data.

    Attributes:
        guardrail: The limits tested.
        judgements: The judgement of each plan by its id, in the order tested.
        model_fingerprint: Identity of the model's weights.
        data_fingerprint: Identity of the samples and labels.
        samples: Number of samples of the split.
        split: Name of the split; plans are certified on ``certify`` and nowhere else.
        created: UTC time, ISO 8601; None if not recorded.
    """

    guardrail: Guardrail
    judgements: Mapping[str, Judgement]
    model_fingerprint: str
    data_fingerprint: str
    samples: int
    split: Literal["certify"] = "certify"
    created: str | None = None

    @property
    def passed(self) -> tuple[str, ...]:
        """Ids of the plans that may run, in the order tested."""
        return tuple(plan_id for plan_id, judgement in self.judgements.items() if judgement.verdict == "pass")

    def as_dict(self) -> dict[str, Any]:
        """The certificate as a JSON-ready dict that `from_dict` reads."""
        data = {"schema": CERTIFICATE_SCHEMA, **{f.name: getattr(self, f.name) for f in fields(self)}}
        data["guardrail"] = self.guardrail.as_dict()
        data["judgements"] = {plan_id: asdict(judgement) for plan_id, judgement in self.judgements.items()}
        return data

    def to_json(self) -> str:
        """The certificate as a JSON document that `from_json` reads."""
        return dump_json(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read a certificate written by `to_json`, and prove every judgement again from its counts.

        Raises:
            BundleError: If the text is not such a document.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise _unreadable(error) from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """As `from_json`, of what its text holds."""
        try:
            if not isinstance(data, dict) or data.get("schema") != CERTIFICATE_SCHEMA:
                raise ValueError(f"its schema is not {CERTIFICATE_SCHEMA}")
            return _certificate_from({name: value for name, value in data.items() if name != "schema"})
        except (ValueError, TypeError, WattbitError) as error:
            raise _unreadable(error) from None


def _unreadable(error: Exception) -> BundleError:
    return BundleError(f"certificate cannot be read: {error}; export the bundle again")


def _certificate_from(data: dict[str, Any]) -> Certificate:
    _require_keys(data, Certificate)
    _require_keys(data["guardrail"], Guardrail)
    if not isinstance(data["judgements"], dict):
        raise ValueError("'judgements' must map plan ids to judgements")
    for name in ("model_fingerprint", "data_fingerprint"):
        if not isinstance(data[name], str) or not data[name]:
            raise ValueError(f"{name} {data[name]!r} must be a text")
    if data["split"] != "certify":
        raise ValueError(f"split {data['split']!r} must be 'certify'")
    if data["created"] is not None and not isinstance(data["created"], str):
        raise ValueError(f"created {data['created']!r} must be a text or null")
    _require_count("samples", data["samples"])
    guardrail = Guardrail(**data["guardrail"])
    judgements = {plan_id: _judgement_from(entry) for plan_id, entry in data["judgements"].items()}
    for plan_id, judgement in judgements.items():
        problem = _contradiction(judgement, guardrail, data["samples"])
        if problem and judgement.verdict == "pass":
            problem = f"is marked as passed, but its figures do not pass: {problem}"
        if problem:
            raise ValueError(f"plan {plan_id} {problem}")
    return Certificate(**{**data, "guardrail": guardrail, "judgements": judgements})


def _judgement_from(data: Any) -> Judgement:
    _require_keys(data, Judgement, ("class_counts",))
    if data["verdict"] not in get_args(Verdict):
        raise ValueError(f"verdict {data['verdict']!r} must be one of {', '.join(get_args(Verdict))}")
    if not isinstance(data["reasons"], list) or not all(
        isinstance(reason, str) for reason in data["reasons"]
    ):
        raise ValueError("'reasons' must be a list of texts")
    _require_count("samples", data["samples"])
    if data["needed_samples"] is not None:
        _require_count("needed_samples", data["needed_samples"], math.inf)
    for name in ("tolerance_pp", "drop_pp", "lower_pp", "upper_pp", "p_value"):
        value = data[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} {value!r} must be a number or null")
    classes = data.get("class_counts", {})
    if not isinstance(classes, dict) or any(str(int(label)) != label for label in classes):
        raise ValueError("'class_counts' must map class indices to counts")
    return Judgement(
        **{
            **data,
            "reasons": tuple(data["reasons"]),
            "counts": None if data["counts"] is None else _counts_from(data["counts"]),
            "class_counts": {int(label): _counts_from(counts) for label, counts in classes.items()},
        }
    )


def _counts_from(counts: Any) -> PairedCounts:
    _require_keys(counts, PairedCounts)
    for name, count in counts.items():
        _require_count(name, count)
    return PairedCounts(**counts)


def _contradiction(judgement: Judgement, guardrail: Guardrail, samples: int) -> str | None:
    """What in a judgement does not follow from its counts, so that no edited figure lets a plan run."""
    counts, tolerance_pp, passed = judgement.counts, judgement.tolerance_pp, judgement.verdict == "pass"
    if counts is None:
        # Scores leave no counts, so a pass on them cannot be proved again.
        return "there are no paired counts to prove it from" if passed else None
    if not judgement.samples == counts.samples == samples:
        return f"it has {judgement.samples} samples, its counts {counts.samples}, the certificate {samples}"
    if tolerance_pp is None or not 0.0 < tolerance_pp <= guardrail.tolerance_pp:
        return f"it was tested against {tolerance_pp} pp, the limit is {guardrail.tolerance_pp:g} pp"
    alpha, strict = guardrail.alpha, guardrail.strict
    if passed and not accepts(counts, tolerance_pp / 100.0, alpha, strict):
        return f"{counts} is not accepted at {tolerance_pp:g} pp"
    figures = {
        "drop_pp": counts.drop_pp,
        "lower_pp": lower_bound_pp(counts, alpha, strict),
        "upper_pp": upper_bound_pp(counts, alpha, strict),
        "p_value": None if strict else p_value(counts, tolerance_pp / 100.0),
    }
    for name, expected in figures.items():
        found = getattr(judgement, name)
        if (found is None) != (expected is None) or not math.isclose(
            found or 0.0, expected or 0.0, rel_tol=1e-6, abs_tol=1e-9
        ):
            return f"{name} {found} does not follow from {counts}, which gives {expected}"
    return _class_contradiction(judgement, counts, guardrail)


def _class_contradiction(judgement: Judgement, counts: PairedCounts, guardrail: Guardrail) -> str | None:
    classes = judgement.class_counts
    if not set(classes) <= set(guardrail.per_class_pp):
        return "it has counts of a class without a limit"
    for name in ("samples", "reference_only", "plan_only"):
        if sum(getattr(one, name) for one in classes.values()) > getattr(counts, name):
            return f"its classes have more {name} than all samples"
    for label, limit_pp in guardrail.per_class_pp.items() if judgement.verdict == "pass" else ():
        own = classes.get(label)
        if own is None or not accepts(own, limit_pp / 100.0, guardrail.alpha, guardrail.strict):
            return f"class {label} with {own} is not accepted at its {limit_pp:g} pp"
    return None


def _require_keys(data: Any, value_class: type[Any], optional: Collection[str] = ()) -> None:
    names = {field.name for field in fields(value_class)}
    if not isinstance(data, dict) or not names - {*optional} <= set(data) <= names:
        raise ValueError(f"{value_class.__name__} must have the keys {', '.join(sorted(names))}")


def _require_count(name: str, value: Any, most: float = _MOST_SAMPLES) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{name} {value!r} must be a whole number from 0 to {most:g}")
