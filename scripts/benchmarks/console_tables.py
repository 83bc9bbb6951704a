"""A benchmark's result as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import Benchmark, TableValue


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the rows, table by table, and the figures."""
    console.print(f"{benchmark.bench} on {benchmark.device}", highlight=False)
    for title in dict.fromkeys(row.get("table") for row in benchmark.rows):
        rows = [row for row in benchmark.rows if row.get("table") == title]
        console.print(f"\n[bold]{title}[/]{_common(rows)}", highlight=False)
        console.print(_table(rows))
    for name, value in benchmark.figures.items():
        console.print(f"{name:<28} {_cell(value)}", highlight=False)


def _common(rows: Sequence[Mapping[str, TableValue]]) -> str:
    """What is the same in all of several rows, said once."""
    return "".join(f", {_heading(key)} {_cell(rows[0][key])}" for key in _columns(rows, varying=False))


def _table(rows: Sequence[Mapping[str, TableValue]]) -> Table:
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


def _columns(rows: Sequence[Mapping[str, TableValue]], *, varying: bool) -> list[str]:
    """Keys that somebody measured: those whose values differ between rows, or those whose values do not."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    keys.pop("table", None)
    return [key for key in keys if (len(rows) == 1 or len({row.get(key) for row in rows}) > 1) is varying]


def _heading(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: TableValue) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
