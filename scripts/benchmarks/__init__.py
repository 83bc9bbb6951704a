"""Benchmarks: one module each, with a function ``run() -> Benchmark``.

A new benchmark is a new module here and its name in `BENCHMARKS`. One that has options of its own has a
function ``add_options(parser)``, too; its ``run`` is then given what was parsed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType

from wattbit.errors import ConfigError

BENCHMARKS = {
    "evaluator": "scripts.benchmarks.evaluator_bench",
    "kernels": "scripts.benchmarks.kernels_bench",
    "search": "scripts.benchmarks.search_bench",
    "switch": "scripts.benchmarks.switch_bench",
    "transfer": "scripts.benchmarks.transfer_bench",
}
"""Name on the command line -> module. Imported only when asked for, as some take seconds to import."""

TableValue = str | int | float | bool | None
"""What a table may hold; None where something was not measured."""

Row = dict[str, TableValue]
"""A row of a table, by column; the key ``table`` says which rows belong together."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a benchmark found.

    Attributes:
        bench: Its name.
        device: What it ran on.
        figures: The numbers it exists for, by name.
        rows: Everything measured.
    """

    bench: str
    device: str
    figures: Mapping[str, float]
    rows: tuple[Mapping[str, TableValue], ...]

    def to_json(self) -> str:
        """The file for machines."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def find_benchmark(name: str, benches: Mapping[str, str] = BENCHMARKS) -> ModuleType:
    """The module of the benchmark called ``name``.

    Raises:
        ConfigError: If there is none; the message lists the names.
    """
    if name not in benches:
        raise ConfigError(f"no benchmark {name!r:.80}; choose from {', '.join(sorted(benches))}")
    return importlib.import_module(benches[name])
