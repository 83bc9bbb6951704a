"""JSON as wattbit writes and reads it: no NaN, no infinity, no key twice."""

from __future__ import annotations

import json
import math
from typing import Any


def dump_json(data: Any) -> str:
    """``data`` as the text of a JSON file.

    Raises:
        TypeError: If JSON has no form for a value in it.
        ValueError: If a number is NaN or infinite.
    """
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON ``text`` holds.

    Raises:
        ValueError: If it is not JSON, holds NaN or infinity, gives a key twice or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_refuse_doubles, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_number(value: Any, name: str) -> float:
    """Return ``value``, read from JSON as ``name``.

    Raises:
        ValueError: If it is not a finite number, 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r:.80}, must be a finite number, 0 or more")
    return value


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"{key!r:.80} is given twice")
        data[key] = value
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
