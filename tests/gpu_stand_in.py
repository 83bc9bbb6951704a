"""The CPU in a GPU's place, for the GPU report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from scripts.gpu.machine import Machine
from scripts.gpu.record import Budget, Report
from wattbit.energy.counter import Clocks
from workloads.sentiment_net import EncoderSize

ROOT = Path(__file__).parent.parent
SMALL = EncoderSize(layers=1, width=32, ffn_width=64, heads=4, vocabulary=50, positions=128)
NO_METER = "no counter on this machine; take another"


def cpu_machine(meter: Any = None, problem: str = NO_METER) -> Machine:
    return Machine(torch.device("cpu"), meter, "" if meter else problem, lambda: {"power_w": 5.0})


def one_clock() -> Clocks:
    """Real time, read once for both clocks: a busy machine cannot come in between."""
    last_ns = 0

    def read_ns() -> int:
        nonlocal last_ns
        last_ns = time.perf_counter_ns()
        return last_ns

    return Clocks(read_ns, lambda: last_ns)


def read_report(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def minute_report(folder: Path, clock: HandClock) -> Report:
    """A report that may take one minute of ``clock``."""
    return Report(folder / "report.json", Budget(1.0, clock), {"device": {}})
