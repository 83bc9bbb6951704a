"""A precision plan: which layer runs at which precision.

Plans are immutable, hashable and have one canonical JSON form, so that they can be keys of an archive and
their identity can be published in certificates and audit logs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wattbit.errors import PlanError
from wattbit.precision import precision
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import parse_json

PLAN_SCHEMA = 1

_MOST_BYTES = 2**24


class PrecisionPlan(Mapping[str, str]):
    """An immutable map from layer name to precision name, in execution order.

    Two plans are equal if they give every layer the same precision, whatever the order of layers.

    Raises:
        PlanError: If there is no layer, or a name is not a non-empty string.
        PrecisionError: If a precision is unknown.
    """

    __slots__ = ("_hash", "_precisions")

    def __init__(self, precisions: Mapping[str, str]) -> None:
        if not isinstance(precisions, Mapping):
            raise PlanError(
                f"a plan maps layers to precisions, got a {type(precisions).__name__}; give a map"
            )
        if not precisions:
            raise PlanError("a plan needs at least one layer, got none")
        for layer, name in precisions.items():
            if not isinstance(layer, str) or not layer:
                raise PlanError(f"layer name {layer!r:.80} in plan: must be a non-empty string")
            precision(name)
        self._precisions = dict(precisions)
        self._hash = hash(frozenset(self._precisions.items()))

    @classmethod
    def uniform(cls, layers: Sequence[str], name: str) -> PrecisionPlan:
        """The plan that runs every one of ``layers`` at precision ``name``."""
        return cls(dict.fromkeys(layers, name))

    def replace(self, /, **precisions: str) -> PrecisionPlan:
        """A copy with some layers changed; for names with dots use ``replace(**{"a.b": "int8"})``.

        Raises:
            PlanError: If the plan has no such layer.
        """
        for layer in precisions:
            if layer not in self._precisions:
                raise PlanError(f"layer {layer!r:.80} is not in this plan; its layers: {_some(list(self))}")
        return PrecisionPlan({**self._precisions, **precisions})

    def __getitem__(self, layer: str) -> str:
        return self._precisions[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._precisions)

    def __len__(self) -> int:
        return len(self._precisions)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PrecisionPlan):
            return NotImplemented
        return self._precisions == other._precisions

    def __repr__(self) -> str:
        return f"PrecisionPlan({self._precisions!r})"

    def __reduce__(self) -> tuple[type[PrecisionPlan], tuple[dict[str, str]]]:
        return PrecisionPlan, (self._precisions,)

    @property
    def plan_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the plan's canonical JSON (keys sorted, no blanks)."""
        canonical = json.dumps(self._precisions, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def changed_layers(self, other: PrecisionPlan) -> tuple[str, ...]:
        """The layers whose precision differs between this plan and ``other``."""
        return tuple(layer for layer, name in self.items() if other.get(layer) != name)

    def require_layers(self, layers: Sequence[str]) -> PrecisionPlan:
        """Return this plan with its layers in the order of ``layers``.

        Raises:
            PlanError: If the plan names a layer that is not in ``layers``, or leaves one out.
        """
        if list(self) == list(layers):
            return self
        known = set(layers)
        unknown = [layer for layer in self if layer not in known]
        missing = [layer for layer in layers if layer not in self._precisions]
        if unknown:
            raise PlanError(
                f"plan names layer {unknown[0]!r:.80}, which the model lacks; its layers: {_some(layers)}"
            )
        if missing:
            raise PlanError(
                f"plan leaves out layer {missing[0]!r} ({len(missing)} of {len(layers)} missing); "
                "give every switchable layer a precision"
            )
        return PrecisionPlan({layer: self._precisions[layer] for layer in layers})

    def to_json(self) -> str:
        """The plan as a JSON document that `parse` reads."""
        return json.dumps({"schema": PLAN_SCHEMA, "precisions": self._precisions}, indent=2) + "\n"

    @classmethod
    def parse(cls, text: str, layers: Sequence[str]) -> PrecisionPlan:
        """Read a plan for a model with ``layers`` from JSON.

        Accepted: ``{"schema": 1, "precisions": {layer: precision}}``, a bare ``{layer: precision}`` as other
        tools write it, or one precision name as a JSON string, for a uniform plan.

        Raises:
            PlanError: If the text is not JSON or does not fit the model.
            PrecisionError: If it names an unknown precision.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise PlanError(f"plan is not valid JSON: {error}; write {{layer: precision}}") from None
        if isinstance(data, str):
            return cls.uniform(layers, data)
        if not isinstance(data, dict):
            raise PlanError(f"plan is a JSON {type(data).__name__}; write {{layer: precision}} or one name")
        if "precisions" in data:
            if data.get("schema", PLAN_SCHEMA) != PLAN_SCHEMA:
                raise PlanError(
                    f"plan schema {data['schema']!r:.80} is not {PLAN_SCHEMA}; export the plan again"
                )
            data = data["precisions"]
            if not isinstance(data, dict):
                raise PlanError(f"'precisions' is a JSON {type(data).__name__}; write {{layer: precision}}")
        return cls(data).require_layers(layers)

    @classmethod
    def read(cls, path: Path, layers: Sequence[str]) -> PrecisionPlan:
        """Read a plan file; see `parse` for the accepted forms.

        Raises:
            PlanError: If the file cannot be read, or its text is no plan for the model.
        """
        try:
            text = read_regular(path, _MOST_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise PlanError(f"cannot read plan file {path}: {why}; give the path of a JSON file") from None
        return cls.parse(text, layers)


def _some(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, … ({len(names)} in all)" if len(names) > limit else shown
