"""Reading a JSON object with the type of every field checked; errors name the path of the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from wattbit.errors import ConfigError

REMEDY = "run train.py again"


class Fields:
    """A JSON object at ``path``; what is absent or null reads as None or empty.

    Raises:
        ConfigError: From every method, if a value has the wrong type.
    """

    def __init__(self, data: object, path: str) -> None:
        if data is not None and not isinstance(data, Mapping):
            raise wrong(path, data, "an object")
        self.data: Mapping[str, Any] = {} if data is None else data
        self.path = path

    def fields(self, key: str) -> Fields:
        """The object in field ``key``."""
        return Fields(self.data.get(key), f"{self.path}.{key}")

    def items(self, key: str) -> list[Fields]:
        """The objects in the list in field ``key``."""
        return [Fields(item, f"{self.path}.{key}[{i}]") for i, item in enumerate(self._sequence(key))]

    def number(self, key: str) -> float | None:
        """The number in field ``key``; None where it is not finite."""
        return _number(self.data.get(key), f"{self.path}.{key}")

    def numbers(self) -> dict[str, float | None]:
        """Every field, each of them a number."""
        return {key: self.number(key) for key in self.data}

    def number_list(self, key: str) -> tuple[float | None, ...]:
        """The list of numbers in field ``key``."""
        return tuple(_number(item, f"{self.path}.{key}[{i}]") for i, item in enumerate(self._sequence(key)))

    def text(self, key: str) -> str:
        """The text in field ``key``; numbers and truth values are written out."""
        return _text(self.data.get(key), f"{self.path}.{key}")

    def needed_text(self, key: str) -> str:
        """The text in field ``key``, which must be there."""
        if not self.text(key):
            raise wrong(f"{self.path}.{key}", self.data.get(key), "a text")
        return self.text(key)

    def texts(self, key: str) -> dict[str, str]:
        """The object in field ``key``, each of its fields a text."""
        fields = self.fields(key)
        return {str(name): fields.text(name) for name in fields.data}

    def described(self, key: str) -> dict[str, str]:
        """The object in field ``key`` for showing: nested values as compact JSON, nulls left out."""
        data = self.fields(key).data
        return {str(name): _shown(value) for name, value in data.items() if value is not None}

    def names(self, key: str) -> tuple[str, ...]:
        """The list of texts in field ``key``."""
        return tuple(_text(item, f"{self.path}.{key}[{i}]") for i, item in enumerate(self._sequence(key)))

    def interval(self, key: str) -> tuple[float, float] | None:
        """The pair of numbers in field ``key``."""
        items = self._sequence(key)
        path = f"{self.path}.{key}"
        if items and len(items) != 2:
            raise wrong(path, list(items), "two numbers")
        low, high = (_number(item, path) for item in items) if items else (None, None)
        return None if low is None or high is None else (low, high)

    def by_tolerance(self) -> dict[float, str]:
        """The object's keys by the tolerance they write."""
        try:
            return {float(key): key for key in self.data}
        except (TypeError, ValueError):
            raise wrong(self.path, list(self.data), "keyed by tolerances in pp") from None

    def _sequence(self, key: str) -> Sequence[Any]:
        items = self.data.get(key)
        if items is None:
            return ()
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
            raise wrong(f"{self.path}.{key}", items, "a list")
        return items


def wrong(path: str, value: object, expected: str) -> ConfigError:
    """The error that says that the field at ``path`` holds ``value`` and what it must hold."""
    shown = repr(value)
    shown = f"{shown[:40]}…" if len(shown) > 40 else shown
    return ConfigError(f"{path} is {shown}: must be {expected}; {REMEDY}")


def _number(value: object, path: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(path, value, "a number or null")
    # NaN and infinity are no quantities: a reader sees "unknown".
    return float(value) if math.isfinite(value) else None


def _text(value: object, path: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str | bool | Real):
        # JSON can hold half of a surrogate pair, which no file and no font takes.
        return str(value).encode(errors="replace").decode()
    raise wrong(path, value, "a text or a number")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
