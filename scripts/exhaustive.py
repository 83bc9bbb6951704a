"""``python -m scripts.exhaustive TABLE``: run every plan of a small network and write the table of outcomes.

A run that is interrupted goes on where it was when it is started again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from envs.plan_table import TABLES
from pipeline.cli import one_line_errors
from pipeline.preparation import use_threads
from scripts import CommandParser
from scripts.exhaustive_tables.table_builder import build_table
from scripts.exhaustive_tables.table_recipes import RECIPES
from wattbit.errors import ConfigError
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.writable import require_writable


def main(arguments: Sequence[str]) -> None:
    """Build the table named in ``arguments``; a user's mistake ends in one line and exit code 2."""
    parser = CommandParser(
        f"TABLE, TABLE one of {', '.join(RECIPES)}", prog="python -m scripts.exhaustive", description=__doc__
    )
    parser.add_argument("table", metavar="TABLE", help=f"which table: {', '.join(RECIPES)}")
    parser.add_argument("overrides", nargs="*", help="settings of train.py, such as workload.data_dir=FOLDER")
    parser.add_argument("--search", type=int, default=1024, help="search samples, of the search split")
    parser.add_argument("--held-out", type=int, default=2048, help="held-out samples, of the test split")
    parser.add_argument("--batch", type=int, default=512, help="samples that are run together")
    parser.add_argument(
        "--keep", type=Path, default=Path("outputs/exhaustive"), help="folder of unfinished work"
    )
    parser.add_argument("--output", type=Path, help="the table's file; without it, the folder of all tables")
    with one_line_errors():
        options = parser.parse_intermixed_args(arguments)
        if options.table not in RECIPES:
            raise ConfigError(f"no table {options.table!r}; choose from {', '.join(RECIPES)}")
        output = options.output or TABLES / f"{options.table}.npz"
        require_writable(output.absolute().parent, "give another file to --output")
        require_writable(options.keep.absolute(), "give another folder to --keep")
        # Results are then the same bit for bit in every run.
        use_threads(1)
        samples = {"search": options.search, "test": options.held_out}
        table = build_table(
            options.table, options.overrides, samples, options.batch, options.keep / options.table
        )
        content = table.to_bytes()
        write_atomically(output, content, "give another file to --output")
        print(f"{output}: {len(content) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
