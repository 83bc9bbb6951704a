"""Benchmarks: one module each, with a function ``run() -> Benchmark``.

A new benchmark is a new module here and its name in `BENCHES`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattbit.errors import ConfigError

BENCHES = {
    "kernels": "scripts.benches.kernels",
    "switch": "scripts.benches.switch",
}
"""Name on the command line -> module. Imported only when asked for, as some take seconds to import."""

Cell = str | int | float | bool | None
"""What a cell of a table may hold; None where something was not measured."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a benchmark found.

    Attributes:
        bench: Its name.
        device: What it ran on.
        figures: The numbers it exists for, by name.
        rows: Everything measured; the key ``table`` says which rows belong together.
    """

    bench: str
    device: str
    figures: Mapping[str, float]
    rows: tuple[Mapping[str, Cell], ...]

    def to_json(self) -> str:
        """The file for machines."""
        data = {
            "bench": self.bench,
            "device": self.device,
            "figures": dict(self.figures),
            "rows": [dict(row) for row in self.rows],
        }
        return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def find_bench(name: str, benches: Mapping[str, str] = BENCHES) -> Callable[[], Benchmark]:
    """The function that runs the benchmark called ``name``.

    Raises:
        ConfigError: If there is none; the message lists the names.
    """
    if name not in benches:
        raise ConfigError(f"no benchmark {name!r:.80}; choose from {', '.join(sorted(benches))}")
    run: Callable[[], Benchmark] = importlib.import_module(benches[name]).run
    return run
