"""Whose work a CPU does: a package's counter bills everybody's, so a measurement must know it was alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC_STAT = Path("/proc/stat")

_BUSY_COLUMNS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq; guests are part of user
_TICK_S = 0.01
"""The kernel accounts in steps of this length, so foreign time this short may be rounding."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU-seconds up to one moment.

    Attributes:
        busy_s: Of the whole machine, all cores added up.
        own_s: Of this process and those of its children that have ended.
    """

    busy_s: float
    own_s: float


def own_cpu_s() -> float:
    """CPU-seconds of this process and of those of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def read_cpu_times(path: Path = PROC_STAT, own_s: Callable[[], float] = own_cpu_s) -> CpuTimes | None:
    """The CPU-seconds until now, or None where the system does not say."""
    try:
        columns = path.read_text(encoding="utf-8").partition("\n")[0].split()[1:]
        ticks = sum(int(columns[index]) for index in _BUSY_COLUMNS)
    except (OSError, ValueError, IndexError):
        return None
    return CpuTimes(ticks / os.sysconf("SC_CLK_TCK"), own_s())


def foreign_share(begin: CpuTimes | None, end: CpuTimes | None) -> float | None:
    """The share of the machine's busy time that others spent, 0 to 1; None where it is not known.

    A child that still runs counts as foreign: its time is not known before it ends.
    """
    if begin is None or end is None:
        return None
    busy_s, own_s = end.busy_s - begin.busy_s, end.own_s - begin.own_s
    if busy_s <= 0:
        # Times that stand still while this process works are those of a sandbox, and say nothing.
        return None if own_s > _TICK_S else 0.0
    return max(0.0, busy_s - own_s - _TICK_S) / busy_s
