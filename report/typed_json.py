"""JSON read as dataclasses: every value is checked against its annotation, and an error names its path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wattbit.errors import ConfigError, WattbitError

REMEDY = "run train.py again"


def read_value(kind: Any, data: object, path: str) -> Any:
    """``data``, as JSON holds it, as a value of the annotation ``kind``.

    Known are dataclasses, ``Mapping``, ``tuple``, ``Literal``, ``float``, ``int``, ``str``, ``bool``, and any
    of them ``| None``. A field that is absent or null takes its default, if it has one.

    Raises:
        ConfigError: If ``data`` is of another type; the message starts with the path of the value.
    """
    optional = get_origin(kind) in (UnionType, Union)
    if optional:
        kind = get_args(kind)[0]
        if data is None:
            return None
    expected, fits = _requirement(kind, data)
    if not fits:
        raise wrong(path, data, f"{expected} or null" if optional else expected)
    if is_dataclass(kind) and isinstance(data, Mapping):
        return _read_fields(kind, data, path)
    arguments = get_args(kind)
    if isinstance(data, Mapping):
        key_kind, item_kind = arguments
        return {_key(key_kind, k, path): read_value(item_kind, v, f"{path}.{k}") for k, v in data.items()}
    if isinstance(data, list):
        kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(read_value(kinds[i], item, f"{path}[{i}]") for i, item in enumerate(data))
    if isinstance(data, str):
        # JSON can hold half of a surrogate pair, which no file and no font takes.
        return data.encode(errors="replace").decode()
    return float(data) if kind is float else data  # type: ignore[arg-type]


def wrong(path: str, value: object, expected: str) -> ConfigError:
    """The error that says that ``path`` holds ``value``, and what it must be."""
    shown = repr(value)
    shown = f"{shown[:40]}…" if len(shown) > 40 else shown
    return ConfigError(f"{path} is {shown}: must be {expected}; {REMEDY}")


def _requirement(kind: Any, data: object) -> tuple[str, bool]:
    """What a value of ``kind`` must be in JSON, in words, and whether ``data`` is that."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}", isinstance(data, str) and data in arguments
    if get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return "a list", isinstance(data, list)
        return f"a list of {len(arguments)}", isinstance(data, list) and len(data) == len(arguments)
    if is_dataclass(kind) or get_origin(kind) is not None:
        return "an object", isinstance(data, Mapping)
    if kind is bool:
        return "true or false", isinstance(data, bool)
    if kind is str:
        return "a text", isinstance(data, str)
    if isinstance(data, bool) or not isinstance(data, int | float):
        return "a whole number" if kind is int else "a finite number", False
    if kind is int:
        return "a whole number", isinstance(data, int)
    # Comparing serves for infinity, NaN, and whole numbers that no float can hold.
    return "a finite number", abs(data) <= sys.float_info.max


def _read_fields(kind: Any, data: Mapping[str, Any], path: str) -> Any:
    values = {}
    for field in fields(kind):
        value = data.get(field.name)
        required = field.default is MISSING and field.default_factory is MISSING
        if value is not None or required:
            values[field.name] = read_value(_hints(kind)[field.name], value, f"{path}.{field.name}")
    unknown = sorted(set(data) - {field.name for field in fields(kind)})
    if unknown:
        raise ConfigError(f"{path} has a field {unknown[0]!r:.40} that no results have; {REMEDY}")
    try:
        return kind(**values)
    except WattbitError as error:
        raise ConfigError(f"{path}: {error}; {REMEDY}") from None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(kind: Any, key: str, path: str) -> str | int:
    if kind is str:
        return key.encode(errors="replace").decode()
    if not (key.isascii() and key.isdigit()):
        raise wrong(path, key, "keyed by whole numbers")
    return int(key)
