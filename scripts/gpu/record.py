"""The report while it is being made: on disk after every row, and never over its time.

A section that fails, or for which no time is left, says so and loses nothing of the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wattbit.errors import ConfigError, OutputError, one_line
from wattbit.storage.atomic_write import write_atomically

T = TypeVar("T")

SCHEMA = 1
LEAST_S = 1.0
"""With less time than this no section is begun, seconds."""


class Budget:
    """Time that may be spent.

    Args:
        minutes: How much there is.
        clock: Seconds on a monotonic clock.

    Raises:
        ConfigError: If it is not above 0, or longer than a day.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0.0 < minutes <= 1440.0:
            raise ConfigError(f"{minutes:g} minutes: must be above 0 and at most 1440; 8 is usual")
        self.minutes = minutes
        self._clock = clock
        self._start = clock()

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._start

    @property
    def left_s(self) -> float:
        """Seconds to the end; negative after it."""
        return self.minutes * 60.0 - self.spent_s


class Section:
    """One section of a report, being filled.

    Args:
        content: What is written to the file for it.
        budget: Time that may be spent.
        end_s: When this section must leave the time to others, seconds since the beginning of the report.
        save: Writes the file.
    """

    def __init__(
        self, content: dict[str, Any], budget: Budget, end_s: float, save: Callable[[], None]
    ) -> None:
        self._content = content
        self._budget = budget
        self._end_s = end_s
        self._save = save

    @property
    def left_s(self) -> float:
        """Seconds that this section may still take."""
        return min(self._budget.left_s, self._end_s - self._budget.spent_s)

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows so far."""
        return tuple(self._content["rows"])

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row and write the file."""
        self._content["rows"].append(dict(row))
        self._save()

    def note(self, key: str, value: Any) -> None:
        """Write a fact about the whole section."""
        self._content[key] = value
        self._save()

    def within_time(self, items: Iterable[T], seconds_each: float, name: Callable[[T], str]) -> Iterator[T]:
        """Those of ``items`` that there is time for; the names of the others go into ``left_out``."""
        for item in items:
            if self.left_s >= seconds_each:
                yield item
            else:
                self._content.setdefault("left_out", []).append(name(item))
                self._save()

    def attempt(self, row: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> None:
        """Add ``row`` with what ``measure`` finds, or with the error it raises."""
        try:
            found: Mapping[str, Any] = measure()
        except Exception as error:  # whatever one shape or format breaks, the next one may work
            found = {"error": one_line(error)}
        self.add({**row, **found})


class Report:
    """A report in a JSON file.

    Args:
        path: The file; replaced as a whole at each write.
        budget: Time that may be spent.
        header: What it says before the sections.

    Raises:
        OutputError: If the file cannot be written.
    """

    def __init__(self, path: Path, budget: Budget, header: Mapping[str, Any]) -> None:
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: its folder does not exist; give another file to --out")
        self._path = path
        self._budget = budget
        self._data: dict[str, Any] = {"schema": SCHEMA, "complete": False, **header, "sections": {}}
        self._save()

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the sections that failed."""
        sections = self._data["sections"].items()
        return tuple(name for name, content in sections if content["status"] == "failed")

    def run(self, name: str, body: Callable[[Section], None], *, share: float) -> None:
        """Fill the section ``name`` with ``body``, unless the time is up.

        Args:
            name: The section's name.
            body: Measures and adds rows.
            share: The most it may take of the time that is left.
        """
        content: dict[str, Any] = {"status": "running", "rows": []}
        self._data["sections"][name] = content
        start_s, left_s = self._budget.spent_s, self._budget.left_s
        if left_s < LEAST_S:
            reason = f"{max(0.0, left_s):.0f} s are left, it needs {LEAST_S:g}"
            content.update(status="skipped", reason=reason)
            self._save()
            return
        self._save()
        try:
            body(Section(content, self._budget, start_s + share * left_s, self._save))
        except OutputError:
            raise
        except Exception as error:  # a section must not lose the others
            content.update(status="failed", error=one_line(error))
        else:
            content["status"] = "partial" if "left_out" in content else "ok"
        content["seconds"] = round(self._budget.spent_s - start_s, 2)
        self._save()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Add ``facts`` and mark the report as complete."""
        self._data.update(facts, complete=True)
        self._data["seconds"] = round(self._budget.spent_s, 2)
        self._save()

    def _save(self) -> None:
        text = json.dumps(jsonable(self._data), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(self._path, text, "give another file to --out")


def jsonable(value: Any) -> Any:
    """``value`` with what JSON has no word for (NaN, infinity) as text, and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return str(value)
    return value
