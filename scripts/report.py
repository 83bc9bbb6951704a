"""``python -m scripts.report RUN_DIR``: draw the report of a run again, from ``RUN_DIR/results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from report.html_report import write_report
from report.results import load_results
from wattbit.errors import WattbitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the report of a run; returns the exit status, 2 if that is not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description="Draw a run's report again."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, with results.json")
    run_dir = parser.parse_args(arguments).run_dir
    try:
        write_report(run_dir, load_results(run_dir))
    except WattbitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(run_dir / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
