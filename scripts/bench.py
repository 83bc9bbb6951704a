"""``python -m scripts.bench NAME [--json FILE]``: a table for people, a file for machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from pipeline.cli import one_line_errors
from pipeline.preparation import use_threads
from scripts import CommandParser
from scripts.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from scripts.benchmarks.console_tables import show
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.writable import require_writable

LOG_WIDTH = 140


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark named in ``arguments``; a user's mistake ends in one line and exit code 2."""
    with one_line_errors():
        options, module = _parse(arguments)
        if options.json is not None:
            require_writable(options.json.absolute().parent, "give another file to --json")
        use_threads(1)
        benchmark: Benchmark = module.run(options) if hasattr(module, "add_options") else module.run()
        # A log has room for every column, a terminal as much as it is wide.
        show(benchmark, Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH))
        if options.json is not None:
            write_atomically(options.json, benchmark.to_json(), "give another file to --json")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, ModuleType]:
    """The options, some of which may be the benchmark's own, and its module."""
    names = ", ".join(sorted(BENCHMARKS))
    parser = CommandParser(
        f"NAME [--json FILE], NAME one of {names}",
        prog="python -m scripts.bench",
        description=f"Run a benchmark on one torch thread: {names}.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="which benchmark")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result to FILE as JSON")
    name = parser.parse_known_args(arguments)[0].name
    module = None if name is None else find_benchmark(name)
    if module is not None and hasattr(module, "add_options"):
        module.add_options(parser)
    # Help comes last, so that it tells of the benchmark's own options.
    parser.add_argument("-h", "--help", action="help", help="show this message and exit")
    options = parser.parse_args(arguments)
    if module is None:
        parser.error("NAME is missing")
    return options, module


if __name__ == "__main__":
    main(sys.argv[1:])
