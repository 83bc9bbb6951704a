"""``python -m scripts.bench NAME [--json FILE]``: a table for people, a file for machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.build import use_threads
from pipeline.cli import one_line_errors
from pipeline.writable import require_writable
from scripts.benchmarks import BENCHMARKS, Benchmark, Cell, find_benchmark, find_options
from wattbit.errors import ConfigError, OutputError

LOG_WIDTH = 140


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        names = ", ".join(sorted(BENCHMARKS))
        raise ConfigError(f"{message}; write {self.prog} NAME [--json FILE], NAME one of {names}")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that ``arguments`` name; what a user can mend ends in one line and exit code 2."""
    with one_line_errors():
        options, own_options = _parse(arguments)
        run = find_benchmark(options.name)
        if options.json is not None:
            require_writable(options.json.absolute().parent)
        use_threads(1)
        benchmark = run(options) if own_options else run()
        # A log has room for every column, a terminal as much as it is wide.
        show(benchmark, Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH))
        if options.json is not None:
            write(benchmark, options.json)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, bool]:
    """The options, and whether the benchmark has some of its own, which only its name tells."""
    first = _parser(add_help=False)
    first.add_argument("name", nargs="?")
    name = first.parse_known_args(arguments)[0].name
    parser = _parser(add_help=True)
    parser.add_argument("name", metavar="NAME", help="which benchmark")
    add_options = None if name is None else find_options(name)
    if add_options is not None:
        add_options(parser)
    return parser.parse_args(arguments), add_options is not None


def _parser(*, add_help: bool) -> _Parser:
    parser = _Parser(
        prog="python -m scripts.bench",
        description=f"Run a benchmark on one torch thread: {', '.join(sorted(BENCHMARKS))}.",
        add_help=add_help,
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result to FILE as JSON")
    return parser


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the rows, table by table, and the figures."""
    console.print(f"{benchmark.bench} on {benchmark.device}", highlight=False)
    for title in dict.fromkeys(row.get("table") for row in benchmark.rows):
        rows = [row for row in benchmark.rows if row.get("table") == title]
        console.print(f"\n[bold]{title}[/]{_common(rows)}", highlight=False)
        console.print(_table(rows))
    for name, value in benchmark.figures.items():
        console.print(f"{name:<28} {_cell(value)}", highlight=False)


def write(benchmark: Benchmark, path: Path) -> None:
    """Write the file for machines.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(benchmark.to_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; give another file to --json") from None


def _common(rows: Sequence[Mapping[str, Cell]]) -> str:
    """What is the same in all of several rows, said once."""
    return "".join(f", {_heading(key)} {_cell(rows[0][key])}" for key in _columns(rows, varying=False))


def _table(rows: Sequence[Mapping[str, Cell]]) -> Table:
    """The rest; of a single row, all, one fact a line."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=len(rows) > 1)
    if len(rows) == 1:
        for key in _columns(rows, varying=True):
            table.add_row(_heading(key), _cell(rows[0][key]))
        return table
    columns = _columns(rows, varying=True)
    for key in columns:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        side: Literal["right", "left"] = "right" if numeric else "left"
        table.add_column(key.replace("_", "\n"), justify=side, no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    return table


def _columns(rows: Sequence[Mapping[str, Cell]], *, varying: bool) -> list[str]:
    """Keys that somebody measured: those whose values differ between rows, or those whose values do not."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    keys.pop("table", None)
    return [key for key in keys if (len(rows) == 1 or len({row.get(key) for row in rows}) > 1) is varying]


def _heading(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
