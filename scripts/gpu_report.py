"""``python -m scripts.gpu_report [--out FILE] [--minutes N]``: what this machine's GPU can do, as JSON.

Needs torch, numpy and nvidia-ml-py only. The file is written after every row, so that an interrupted run
leaves what it has. Sections: ``layer_parity`` and ``encoder_parity`` (native against emulated),
``switching``, ``repeatability`` (the same work several times), ``encoder`` (uniform and mixed plans end to
end), ``encoder_abba`` (some of them by the protocol of profiles) and ``layers`` (single layers by precision).
Without an energy counter figures are times, and say so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from scripts import CommandParser
from scripts.gpu import encoder, layers
from scripts.gpu.gpu_measurer import GpuMeasurer
from scripts.gpu.machine import Machine, describe, find_machine, idle_power_w, use_exact_float32
from scripts.gpu.record import Budget, Report, Section
from wattbit.errors import WattbitError

USER_ERROR = 2
MINUTES = 8.0

LAYER_WINDOW_S, PLAN_WINDOW_S, REPEAT_WINDOW_S = 1.0, 2.0, 3.0
"""Counters of A100 and H100 refresh every 100 ms; longer windows for the figures that matter most."""
IDLE_S = 3.0
TRIALS_A_MINUTE = 0.25
"""More minutes, narrower intervals."""

SectionPlan = tuple[str, float, Callable[[Section], None]]
"""Name of a section, the largest share it may take of the time that is left, and what fills it."""


def main(arguments: Sequence[str]) -> int:
    """Make the report; returns the exit code: 0, 1 if a section failed, 2 for a user's mistake."""
    parser = CommandParser(
        "[--out FILE] [--minutes N]",
        prog="python -m scripts.gpu_report",
        description=(__doc__ or "").partition("\n\n")[2],
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("gpu_report.json"))
    parser.add_argument("--minutes", metavar="N", type=float, default=MINUTES, help="at most this long (8)")
    try:
        options = parser.parse_args(arguments)
        budget = Budget(options.minutes)
        failed = make_report(find_machine(LAYER_WINDOW_S), options.out, budget)
    except WattbitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    print(f"wrote {options.out} in {budget.spent_s:.0f} s")
    if failed:
        print(f"failed sections: {', '.join(failed)}; their errors are in the file", file=sys.stderr)
    return 1 if failed else 0


def make_report(
    machine: Machine,
    path: Path,
    budget: Budget,
    sections: Callable[[Machine, float | None, int], Sequence[SectionPlan]] | None = None,
) -> tuple[str, ...]:
    """Fill a report on ``machine`` and return the names of the sections that failed.

    Raises:
        OutputError: If the file cannot be written.
    """
    use_exact_float32()
    idle_w = idle_power_w(machine, IDLE_S)
    header = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe(machine),
        "idle_w": idle_w,
        "conditions_before": machine.conditions(),
    }
    report = Report(path, budget, header)
    trials = max(2, int(TRIALS_A_MINUTE * budget.minutes))
    for name, share, body in (sections or default_sections)(machine, idle_w, trials):
        print(f"{name} ({budget.left_s:.0f} s left)", flush=True)
        report.run(name, body, share=share)
    report.finish({"conditions_after": machine.conditions()})
    return report.failed


def default_sections(machine: Machine, idle_w: float | None, trials: int) -> list[SectionPlan]:
    """The sections in the order they run: later ones build on earlier ones."""
    of_plans = GpuMeasurer(machine, window_s=PLAN_WINDOW_S, trials=trials, idle_w=idle_w)
    of_layers = GpuMeasurer(machine, window_s=LAYER_WINDOW_S, trials=trials, idle_w=idle_w)
    abba = partial(encoder.abba, window_s=PLAN_WINDOW_S, trials=trials, idle_w=idle_w)
    return [
        ("layer_parity", 0.2, partial(layers.parity, machine=machine)),
        ("encoder_parity", 0.2, partial(encoder.parity, machine=machine)),
        ("switching", 0.2, partial(encoder.switching, machine=machine)),
        (
            "repeatability",
            0.25,
            partial(encoder.repeatability, machine=machine, window_s=REPEAT_WINDOW_S),
        ),
        ("encoder", 0.5, partial(encoder.end_to_end, machine=machine, measurer=of_plans)),
        ("encoder_abba", 0.4, partial(abba, machine=machine)),
        ("layers", 1.0, partial(layers.costs, machine=machine, measurer=of_layers)),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
