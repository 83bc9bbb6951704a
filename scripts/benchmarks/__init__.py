"""Benchmarks: one module each, with a function ``run() -> Benchmark``.

A new benchmark is a new module here and its name in `BENCHMARKS`. One that has options of its own has a
function ``add_options(parser)``, too; its ``run`` is then given what was parsed.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from wattbit.errors import ConfigError

BENCHMARKS = {
    "evaluator": "scripts.benchmarks.shared_rollout",
    "kernels": "scripts.benchmarks.kernels",
    "search": "scripts.benchmarks.search",
    "switch": "scripts.benchmarks.switch",
    "transfer": "scripts.benchmarks.transfer",
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


def find_benchmark(name: str, benches: Mapping[str, str] = BENCHMARKS) -> Callable[..., Benchmark]:
    """The function that runs the benchmark called ``name``.

    Raises:
        ConfigError: If there is none; the message lists the names.
    """
    run: Callable[..., Benchmark] = _module(name, benches).run
    return run


def find_options(
    name: str, benches: Mapping[str, str] = BENCHMARKS
) -> Callable[[argparse.ArgumentParser], None] | None:
    """The function that adds the options of the benchmark called ``name``; None if it has none of its own.

    Raises:
        ConfigError: If there is no such benchmark; the message lists the names.
    """
    found: Callable[[argparse.ArgumentParser], None] | None
    found = getattr(_module(name, benches), "add_options", None)
    return found


def _module(name: str, benches: Mapping[str, str]) -> ModuleType:
    if name not in benches:
        raise ConfigError(f"no benchmark {name!r:.80}; choose from {', '.join(sorted(benches))}")
    return importlib.import_module(benches[name])
