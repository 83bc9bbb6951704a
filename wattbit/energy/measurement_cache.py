"""Measurements kept by content, so that nothing is measured twice on one machine.

The key is everything a measurement depends on (weights, inputs, shape, precision, kernel, device, driver,
versions, meter, protocol). Change any of it and the measurement is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from wattbit.audit.canonical_json import canonical_json
from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import dump_json

CACHE_SCHEMA = 1
_MOST_BYTES = 2**23

_log = logging.getLogger(__name__)


class MeasurementCache:
    """A JSON file of measurements.

    A file that is damaged is ignored, with a note in the log, and written anew.

    Args:
        path: The file; made when something is put.
        context: What all of its measurements depend on, such as versions; part of every key.
    """

    def __init__(self, path: Path, context: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._context = dict(context or {})
        self._known = self._read()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def get(self, parts: Mapping[str, Any]) -> EnergyComparison | None:
        """The measurement that depends on ``parts`` (plain JSON values), or None."""
        entry = self._known.get(self._key(parts))
        return None if entry is None else _comparison(entry)

    def put(self, parts: Mapping[str, Any], found: EnergyComparison) -> None:
        """Keep a measurement, beside those that other processes have kept since.

        Raises:
            OutputError: If the file cannot be written.
        """
        # Should another process write in between, its measurements are lost and made again.
        self._known = self._read() | {self._key(parts): asdict(found)}
        text = dump_json({"schema": CACHE_SCHEMA, "measurements": self._known})
        write_atomically(self._path, text, "choose another cache_dir")

    def _key(self, parts: Mapping[str, Any]) -> str:
        return hashlib.sha256(canonical_json({**self._context, **parts})).hexdigest()

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(
                read_regular(self._path, _MOST_BYTES)
            )  # not strictly: one bad number spoils one measurement
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            return self._ignored(str(error))
        if not isinstance(data, dict) or data.get("schema") != CACHE_SCHEMA:
            return self._ignored(f"it is not of schema {CACHE_SCHEMA}")
        entries = data.get("measurements")
        if not isinstance(entries, dict):
            return self._ignored("it holds no measurements")
        good = {key: entry for key, entry in entries.items() if _comparison(entry) is not None}
        if len(good) < len(entries):
            _log.warning(
                "%s: %d of %d measurements are damaged and made again",
                self._path, len(entries) - len(good), len(entries),
            )  # fmt: skip
        return good

    def _ignored(self, why: str) -> dict[str, Any]:
        _log.warning("%s is ignored (%s): what it held is measured again", self._path, why)
        return {}


_TRUTHS = {"reliable"}
_COUNTS = {"trials", "repeats", "rejected"}
_POSITIVE = {"energy_ratio", "reference_j", "candidate_j", "reference_s", "candidate_s"}
_OPTIONAL = {"ratio_low", "ratio_high", "reference_rel_std", "idle_w"}


def _comparison(entry: object) -> EnergyComparison | None:
    """The measurement in a cache entry, or None if it is damaged."""
    if not isinstance(entry, dict) or set(entry) != {field.name for field in fields(EnergyComparison)}:
        return None
    if not all(_fits(name, value) for name, value in entry.items()):
        return None
    return EnergyComparison(**entry)


def _fits(name: str, value: object) -> bool:
    if isinstance(value, bool) or name in _TRUTHS:
        return isinstance(value, bool) and name in _TRUTHS
    if value is None:
        return name in _OPTIONAL
    if not isinstance(value, int if name in _COUNTS else int | float):
        return False
    return abs(value) <= sys.float_info.max and (value > 0 if name in _POSITIVE else value >= 0)
