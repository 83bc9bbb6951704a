"""``python -m wattbit.audit verify LOG [--head HASH]``.

Exits 0 if the log is sound, 1 if it was tampered with, 2 if it cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wattbit.audit.hash_chain import verify
from wattbit.errors import WattbitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m wattbit.audit``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wattbit.audit", description="Check an audit log.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="find edits, reordering and, given a head, truncation")
    command.add_argument("log", type=Path, metavar="LOG", help="the log file")
    command.add_argument("--head", metavar="HASH", help="hash of a record, published while it was the last")
    options = parser.parse_args(arguments)
    try:
        report = verify(options.log, options.head)
    except WattbitError as error:
        print(error, file=sys.stderr)
        return 2
    if not report.ok:
        print(f"{options.log}: tampered with: {report.problem}", file=sys.stderr)
        return 1
    notes = f", {report.after_head} after the expected head" if report.after_head else ""
    if report.torn_bytes:
        notes += f", and an unfinished last line of {report.torn_bytes} bytes, as a crash leaves it"
    print(f"{options.log}: sound, {report.head.sequence} records, head {report.head.hash}{notes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
