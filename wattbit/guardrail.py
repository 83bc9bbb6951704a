"""The limits a plan must hold: how far accuracy may drop, overall and by class, how slow or large it may be.

A `Guardrail` says what is allowed; whether a plan holds it is tested in `wattbit.judging.certificate`. A
tolerance relative to the reference accuracy, as MLPerf states its quality targets ("99% of FP32"), is a
`RelativeGuardrail` until the reference accuracy is known. Needs neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wattbit.errors import GuardrailError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits besides the tolerance: what `Guardrail` and `RelativeGuardrail` have in common.

    Attributes:
        alpha: The level of the test: how often a plan whose drop is the tolerance or more may pass.
        strict: True to test with exact Clopper-Pearson bounds, which need more samples than the score test.
        per_class_pp: For each class index, how much that class's false-negative rate may rise, in percentage
            points.
        max_latency_ms: The longest time per inference allowed, milliseconds; None for no limit.
        max_memory_bytes: The largest size of all stored weights allowed, tied ones once, bytes; None for no
            limit.
    """

    alpha: float = 0.05
    strict: bool = False
    per_class_pp: Mapping[int, float] = field(default_factory=dict, hash=False)
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_class_pp", _checked_classes(self.per_class_pp))
        if not _is_number(self.alpha) or not 0.0 < self.alpha < 0.5:
            raise GuardrailError(f"alpha {self.alpha!r} must lie between 0 and 0.5; 0.05 is usual")
        if not isinstance(self.strict, bool):
            raise GuardrailError(f"strict {self.strict!r} must be true or false")
        for name in ("max_latency_ms", "max_memory_bytes"):
            limit = getattr(self, name)
            if limit is not None and (not _is_number(limit) or not 0.0 < limit < math.inf):
                raise GuardrailError(f"{name} {limit!r} must be a number above 0; leave it out for no limit")


@dataclass(frozen=True, slots=True)
class Guardrail(Limits):
    """All limits a plan must hold.

    Attributes:
        tolerance_pp: The largest drop allowed, in percentage points; above 0, at most 100.

    Raises:
        GuardrailError: If a limit makes no sense.
    """

    tolerance_pp: float

    def __post_init__(self) -> None:
        _require_pp("tolerance_pp", self.tolerance_pp)
        Limits.__post_init__(self)

    @property
    def margin(self) -> float:
        """The tolerance as a share of samples: ``tolerance_pp / 100``."""
        return self.tolerance_pp / 100.0

    def resolve(self, reference_accuracy: float) -> Guardrail:
        """Return this guardrail: its tolerance is not relative. See `RelativeGuardrail.resolve`."""
        return self

    def violations(self, latency_ms: float | None, memory_bytes: int | None) -> tuple[str, ...]:
        """Name every hard limit that figures of a plan break; a figure of None breaks none.

        Args:
            latency_ms: Time per inference, milliseconds; None if not known.
            memory_bytes: Size of the stored weights, bytes; None if not known.
        """
        found = []
        # "not <=" rather than ">", so that NaN breaks a limit.
        slowest, largest = self.max_latency_ms, self.max_memory_bytes
        if slowest is not None and latency_ms is not None and not latency_ms <= slowest:
            found.append(f"latency {latency_ms:.4g} ms is above the limit of {slowest:g} ms")
        if largest is not None and memory_bytes is not None and not memory_bytes <= largest:
            found.append(f"memory {memory_bytes} bytes is above the limit of {largest} bytes")
        return tuple(found)

    def unknowns(self, latency_ms: float | None, memory_bytes: int | None) -> tuple[str, ...]:
        """Name every hard limit that cannot be checked because the figure is None."""
        found = []
        if self.max_latency_ms is not None and latency_ms is None:
            found.append(f"latency is not known, the limit is {self.max_latency_ms:g} ms; measure it")
        if self.max_memory_bytes is not None and memory_bytes is None:
            found.append(f"memory is not known, the limit is {self.max_memory_bytes} bytes; measure it")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-ready dict; ``Guardrail(**data)`` reads it back."""
        per_class_pp = {str(label): pp for label, pp in self.per_class_pp.items()}
        return {"tolerance_pp": self.tolerance_pp, **asdict(self), "per_class_pp": per_class_pp}


@dataclass(frozen=True, slots=True)
class RelativeGuardrail(Limits):
    """Limits whose tolerance is a share of the reference accuracy.

    MLPerf inference asks for at least 99 % (or 99.9 %) of the FP32 model's accuracy (MLPerf Inference Rules,
    table of benchmarks): ``relative_tolerance`` is then 0.01 (or 0.001). MLPerf compares two figures; here
    the drop is tested statistically.

    Attributes:
        relative_tolerance: The share of the reference accuracy that may be lost; above 0, below 1.

    Raises:
        GuardrailError: If a limit makes no sense.
    """

    relative_tolerance: float

    def __post_init__(self) -> None:
        if not _is_number(self.relative_tolerance) or not 0.0 < self.relative_tolerance < 1.0:
            raise GuardrailError(
                f"relative_tolerance {self.relative_tolerance!r} must lie between 0 and 1; "
                "0.01 keeps 99 % of the reference accuracy"
            )
        Limits.__post_init__(self)

    def resolve(self, reference_accuracy: float) -> Guardrail:
        """Return the guardrail for a model of known reference accuracy.

        Args:
            reference_accuracy: A share from 0 to 1. It must be fixed before anybody looks at the split that
                certifies (published, or measured on ``search``): the tests take the tolerance as given.

        Raises:
            GuardrailError: If the accuracy is not a share above 0.
        """
        if not _is_number(reference_accuracy) or not 0.0 < reference_accuracy <= 1.0:
            raise GuardrailError(
                f"reference accuracy {reference_accuracy!r} must be above 0 and at most 1 to make a relative "
                "tolerance absolute; give it as a share, not in percent"
            )
        return Guardrail(
            100.0 * self.relative_tolerance * reference_accuracy,
            **{limit.name: getattr(self, limit.name) for limit in fields(Limits)},
        )


def _require_pp(name: str, value: object) -> None:
    if not _is_number(value) or not 0.0 < value <= 100.0:  # type: ignore[operator]
        raise GuardrailError(
            f"{name} {value!r} must be above 0 and at most 100 percentage points; "
            "no test on samples can show that nothing at all is lost"
        )


def _checked_classes(per_class_pp: Mapping[int, float]) -> dict[int, float]:
    """Copy the map with integer keys: JSON and command lines can only write them as text."""
    if not isinstance(per_class_pp, Mapping):
        raise GuardrailError(
            f"per_class_pp {per_class_pp!r} must map a class index to percentage points: {{3: 0.2}}"
        )
    checked: dict[int, float] = {}
    for key, limit in per_class_pp.items():
        text = str(key)
        if isinstance(key, bool) or not (text.isascii() and text.isdigit()):
            raise GuardrailError(f"class {key!r} in per_class_pp must be a class index: 0, 1, 2, ...")
        if int(text) in checked:
            raise GuardrailError(f"class {text} is given twice in per_class_pp; give each class one limit")
        _require_pp(f"per_class_pp[{text}]", limit)
        checked[int(text)] = limit
    return checked


def _is_number(value: object) -> bool:
    """True for a real number that is neither a bool nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
