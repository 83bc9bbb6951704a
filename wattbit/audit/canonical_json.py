"""Canonical JSON: one text for one value, so that a hash of the text is a hash of the value.

The JSON Canonicalization Scheme, RFC 8785: no blanks, keys sorted by UTF-16 code units, numbers as ECMAScript
writes them, UTF-8. Needs nothing but Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

LARGEST_INT = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact (I-JSON, RFC 7493)."""


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of ``value``: None, bools, ints, floats, texts, lists, tuples, and maps of texts.

    Raises:
        ValueError: If something else is in it, a number that JSON cannot hold (NaN, infinity, a whole number
            beyond 2^53 - 1), or a text that is not Unicode.
    """
    try:
        return _text(value).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            "it holds a text with a lone surrogate, which is not Unicode; clean the text"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply or contains itself; flatten it") from None


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > LARGEST_INT:
            raise ValueError(f"whole number {value} is beyond 2^53 - 1, the JSON limit; write it as a text")
        return str(int(value))
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_text(key)}:{_text(value[key])}" for key in _sorted_keys(value)) + "}"
    raise ValueError(
        f"{type(value).__name__} {value!r:.80} is not a JSON value; convert it to a plain Python value"
    )


def _sorted_keys(value: Mapping[Any, Any]) -> list[str]:
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"key {key!r:.80} of a map is not a text; write it as one")
    return sorted(value, key=lambda key: key.encode("utf-16-be"))


def _float_text(value: float) -> str:
    """Write a float as ECMAScript's Number::toString does (ECMA-262, 6.1.6.1.20)."""
    if not math.isfinite(value):
        raise ValueError(f"number {value} is not finite, which JSON cannot hold; leave it out or write null")
    if value == 0.0:
        return "0"
    # repr gives the fewest digits that read back as the same float, as ECMAScript asks for.
    sign, digit_tuple, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)
    minus = "-" if sign else ""
    if len(digits) <= point <= 21:
        return minus + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{minus}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{minus}{digits[0]}{fraction}e{point - 1:+d}"
