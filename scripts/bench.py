"""``python -m scripts.bench NAME [--json FILE]``: a table for people, a file for machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from scripts.benches import BENCHES, Benchmark, Cell, find_bench
from scripts.entry import one_line_errors
from scripts.writable import require_writable
from wattbit.errors import ConfigError, OutputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        names = ", ".join(sorted(BENCHES))
        raise ConfigError(f"{message}; write {self.prog} NAME [--json FILE], NAME one of {names}")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that ``arguments`` name; what a user can mend ends in one line and exit code 2."""
    parser = _Parser(
        prog="python -m scripts.bench",
        description=f"Run a benchmark on one torch thread: {', '.join(sorted(BENCHES))}.",
    )
    parser.add_argument("name", metavar="NAME", help="which benchmark")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result to FILE as JSON")
    with one_line_errors():
        options = parser.parse_args(arguments)
        run = find_bench(options.name)
        if options.json is not None:
            require_writable(options.json.absolute().parent)
        # On two shared cores, two threads were measured to be five times as slow as one.
        torch.set_num_threads(1)
        benchmark = run()
        show(benchmark, Console())
        if options.json is not None:
            write(benchmark, options.json)


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the rows, table by table, and the figures."""
    console.print(f"{benchmark.bench} on {benchmark.device}", highlight=False)
    for title in dict.fromkeys(row.get("table") for row in benchmark.rows):
        console.print(_table(str(title), [row for row in benchmark.rows if row.get("table") == title]))
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


def _table(title: str, rows: Sequence[Mapping[str, Cell]]) -> Table:
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "table"]
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
