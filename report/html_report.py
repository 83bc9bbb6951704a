"""The report of a run, drawn from its results.

Writes ``report.html``, one file that needs neither a network nor scripts, and ``figures/*.png``.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from report import formatting
from report.captions import CAPTIONS
from report.results import RunResults
from wattbit.storage.atomic_write import write_atomically

_REMEDY = "make the folder writable or give another"
TEMPLATE = "report_template.html.j2"
_FILTERS = {
    "joules": formatting.format_joules,
    "percent": formatting.format_percent,
    "share_interval": formatting.format_share_interval,
    "error": formatting.format_error,
    "pp": formatting.format_pp,
    "interval": formatting.format_interval,
    "tolerance": formatting.format_tolerance,
    "time": formatting.format_time,
    "duration": formatting.format_duration,
    "bytes": formatting.format_bytes,
    "short": formatting.format_short,
    "count": formatting.format_count,
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


def write_report(run_dir: Path, run: RunResults) -> None:
    """Write ``run_dir/figures/*.png`` and ``run_dir/report.html``; each file is replaced whole or not at all.

    Args:
        run_dir: The run's folder; created if need be.
        run: What the run came to; an interrupted run lacks things.

    Raises:
        OutputError: If a file cannot be written.
    """
    from report.figures import FIGURES, figure_png

    images = {name: figure_png(name, run) for name in FIGURES}
    page = render_report(run, images)
    for name, png in images.items():
        write_atomically(run_dir / "figures" / f"{name}.png", png, _REMEDY)
    write_atomically(run_dir / "report.html", page, _REMEDY)


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
    environment.filters.update(_FILTERS, facts=_facts)
    pictures = [_picture(name, run, images[name]) for name in CAPTIONS]
    return environment.get_template(TEMPLATE).render(run=run, pictures=pictures)


def _picture(name: str, run: RunResults, png: bytes) -> Picture:
    from report.figure_parts import missing
    from report.figures import PNG_DPI

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


def _facts(values: Any) -> dict[str, str]:
    """The fields of a value, or the items of a map, for showing; what is None is left out."""
    items: dict[str, Any] = asdict(values) if is_dataclass(values) else dict(values)  # type: ignore[arg-type]
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in items.items() if v is not None}
