"""JSON as wattbit writes and reads it: no NaN, no infinity, no key twice, nothing huge."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_MOST_VALUES = 500_000
"""What a text may hold: a few bytes of JSON can become a hundred in memory."""

_MOST_DIGITS = 300
"""A whole number with more can be beyond what a float holds."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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
        ValueError: If it is not JSON, holds NaN, infinity, a number beyond their range or half a
            million values, gives a key twice or is nested too deeply.
    """
    text = text if isinstance(text, str) else text.decode()
    values = text.count(",") + text.count("[") + text.count("{")
    if values > _MOST_VALUES:
        raise ValueError(f"it may hold {values} values, above the limit of {_MOST_VALUES}")
    try:
        return json.loads(
            text,
            object_pairs_hook=_refuse_doubles,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_unicode(text: bytes) -> None:
    """Refuse a JSON text with half of a surrogate pair, which could be neither printed nor written.

    Raises:
        ValueError: If it has one, or is not JSON.
    """
    if _SURROGATE.search(text):
        json.dumps(parse_json(text), ensure_ascii=False).encode()


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


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.80} must be a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text:.20}… of {len(text)} digits must be a finite number")
    return int(text)
