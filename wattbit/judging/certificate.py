"""The certificate: judgements of plans, with what they were made on, as a value and as JSON.

Plans are judged in `wattbit.judging.judgement`. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from wattbit.errors import BundleError, WattbitError
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import Judgement, Verdict
from wattbit.judging.noninferiority import PairedCounts, accepts
from wattbit.storage.strict_json import dump_json, parse_json

CERTIFICATE_SCHEMA = 1


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

    def to_json(self) -> str:
        """The certificate as a JSON document that `from_json` reads."""
        data = {"schema": CERTIFICATE_SCHEMA, **{f.name: getattr(self, f.name) for f in fields(self)}}
        data["guardrail"] = self.guardrail.as_dict()
        data["judgements"] = {plan_id: asdict(judgement) for plan_id, judgement in self.judgements.items()}
        return dump_json(data)

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read a certificate written by `to_json`, and check that every pass follows from its counts.

        Raises:
            BundleError: If the text is not such a document.
        """
        try:
            data = parse_json(text)
            if not isinstance(data, dict) or data.pop("schema", None) != CERTIFICATE_SCHEMA:
                raise ValueError(f"its schema is not {CERTIFICATE_SCHEMA}")
            return _certificate_from(data)
        except (ValueError, TypeError, WattbitError) as error:
            raise BundleError(f"certificate cannot be read: {error}; export the bundle again") from None


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
        if judgement.verdict == "pass":
            _require_pass(plan_id, judgement, guardrail)
    return Certificate(**{**data, "guardrail": guardrail, "judgements": judgements})


def _judgement_from(data: Any) -> Judgement:
    _require_keys(data, Judgement)
    if data["verdict"] not in get_args(Verdict):
        raise ValueError(f"verdict {data['verdict']!r} must be one of {', '.join(get_args(Verdict))}")
    if not isinstance(data["reasons"], list) or not all(
        isinstance(reason, str) for reason in data["reasons"]
    ):
        raise ValueError("'reasons' must be a list of texts")
    _require_count("samples", data["samples"])
    if data["needed_samples"] is not None:
        _require_count("needed_samples", data["needed_samples"])
    for name in ("tolerance_pp", "drop_pp", "lower_pp", "upper_pp", "p_value"):
        value = data[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} {value!r} must be a number or null")
    counts = data["counts"]
    if counts is not None:
        _require_keys(counts, PairedCounts)
        for name, count in counts.items():
            _require_count(name, count)
        counts = PairedCounts(**counts)
    return Judgement(**{**data, "reasons": tuple(data["reasons"]), "counts": counts})


def _require_pass(plan_id: str, judgement: Judgement, guardrail: Guardrail) -> None:
    """Refuse a pass that the figures next to it contradict, so that no edited verdict lets a plan run."""
    counts, upper_pp, tolerance_pp = judgement.counts, judgement.upper_pp, judgement.tolerance_pp
    shown = False
    if tolerance_pp is not None and counts is not None:
        shown = accepts(counts, tolerance_pp / 100.0, guardrail.alpha, guardrail.strict)
    elif tolerance_pp is not None and upper_pp is not None:
        shown = upper_pp < tolerance_pp
    if not shown:
        raise ValueError(f"plan {plan_id} is marked as passed, but its figures do not pass")


def _require_keys(data: Any, value_class: type[Any]) -> None:
    names = [field.name for field in fields(value_class)]
    if not isinstance(data, dict) or set(data) != set(names):
        raise ValueError(f"{value_class.__name__} must have the keys {', '.join(names)}")


def _require_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} {value!r} must be a whole number, 0 or more")
