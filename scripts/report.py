"""The report of a run: ``python -m scripts.report RUN_DIR`` draws it again from ``RUN_DIR/results.json``.

Writes ``report.html``, one file that needs neither a network nor scripts, and ``figures/*.png``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import quantities
from scripts.captions import CAPTIONS
from scripts.read_results import load_results, parse_results
from scripts.results import RunResults
from wattbit.errors import OutputError, WattbitError

TEMPLATE = "report_template.html.j2"
_FILTERS = {
    "joules": quantities.format_joules,
    "percent": quantities.format_percent,
    "share_interval": quantities.format_share_interval,
    "error": quantities.format_error,
    "pp": quantities.format_pp,
    "interval": quantities.format_interval,
    "tolerance": quantities.format_tolerance,
    "time": quantities.format_time,
    "duration": quantities.format_duration,
    "bytes": quantities.format_bytes,
    "short": quantities.format_short,
    "count": quantities.format_count,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as the page shows it; ``missing`` says why there is none, and is empty if there is one.

    Width and height are in CSS pixels.
    """

    name: str
    heading: str
    caption: str
    alt: str
    data_uri: str
    width: int
    height: int
    missing: str


def write_report(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write ``run_dir/figures/*.png`` and ``run_dir/report.html``; each file is replaced whole or not at all.

    Args:
        run_dir: The run's folder; created if need be.
        results: The content of a ``results.json`` (schema 1); what an interrupted run lacks may be absent.

    Raises:
        ConfigError: If ``results`` does not fit the schema.
        OutputError: If a file cannot be written.
    """
    from scripts.figures import FIGURES, figure_png

    run = parse_results(results)
    images = {name: figure_png(name, run) for name in FIGURES}
    page = render_report(run, images)
    for name, png in images.items():
        _write(run_dir / "figures" / f"{name}.png", png)
    _write(run_dir / "report.html", page.encode())


def render_report(run: RunResults, images: Mapping[str, bytes]) -> str:
    """The report as one HTML page, with ``images`` (PNGs by figure name) embedded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    pictures = [_picture(name, run, images[name]) for name in CAPTIONS]
    return environment.get_template(TEMPLATE).render(run=run, pictures=pictures)


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


def _picture(name: str, run: RunResults, png: bytes) -> Picture:
    from scripts.figure_parts import missing
    from scripts.figures import PNG_DPI

    caption, why = CAPTIONS[name], missing(run, name)
    # A PNG begins with 8 bytes of signature and the header chunk: length, "IHDR", width, height.
    width, height = struct.unpack(">II", png[16:24])
    return Picture(
        name=name,
        heading=caption.heading,
        caption=caption.text,
        alt="" if why else caption.describe(run),
        data_uri=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        width=round(100 * width / PNG_DPI),
        height=round(100 * height / PNG_DPI),
        missing=why,
    )


def _write(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it there, so that no reader sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"cannot write {path}: {reason}; make the folder writable or give another"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
