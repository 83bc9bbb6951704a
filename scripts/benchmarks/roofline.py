"""How near to the machine's limits a kernel comes, with limits that are measured, not looked up.

The roof of a layer is the longer of two times: its multiply-accumulates at the peak rate, and its bytes at
the speed at which this machine copies as many bytes (S. Williams et al., "Roofline", CACM 2009). The share is
roof / measured time.

The peak of float32 is the best of several square matrix products. That of int8 is four times as much, by
construction: a VNNI instruction multiplies and adds four 8-bit values where a float32 one has one value. A
share that is low for int8 and high for float32 says that quantizing the input, which is part of the kernel,
dominates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scripts.benchmarks import Row
from scripts.benchmarks.kernel_cases import Case
from scripts.benchmarks.timing import best_s

_SIDES = (512, 768, 1024)
_RATES = {"fp32": 1.0, "int8": 4.0}
"""Multiply-accumulates an instruction, in relation to float32, by the format of the multiplication."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The limits of this machine on one thread.

    Attributes:
        macs_per_s: Multiply-accumulates a second in float32.
    """

    macs_per_s: float

    def share(self, case: Case, compute: str, seconds: float) -> float | None:
        """Roof time of ``case`` / ``seconds``; None if no rate is known for the format ``compute``."""
        rate = _RATES.get(compute)
        if rate is None:
            return None
        return max(case.macs / (rate * self.macs_per_s), copy_s(case.traffic_bytes)) / seconds

    def rows(self) -> tuple[Row, ...]:
        """The limits, for the table."""
        return tuple(
            {
                "table": "roofs",
                "format": name,
                "gmac_per_s": rate * self.macs_per_s / 1e9,
                "source": "best square product" if name == "fp32" else f"{rate:g} x fp32 (VNNI)",
            }
            for name, rate in _RATES.items()
        )


def measured_roofline(*, window_s: float = 0.05, trials: int = 5) -> Roofline:
    """Measure the peak rate of float32 products."""
    best = 0.0
    for side in _SIDES:
        a, b, out = torch.rand(side, side), torch.rand(side, side), torch.empty(side, side)
        seconds = best_s(lambda: torch.mm(a, b, out=out), window_s=window_s, trials=trials)  # noqa: B023
        best = max(best, side**3 / seconds)
    return Roofline(best)


def copy_s(traffic_bytes: int, *, window_s: float = 0.01, trials: int = 3) -> float:
    """The time in which this machine reads half of ``traffic_bytes`` and writes them elsewhere, seconds."""
    source = torch.ones(max(1, traffic_bytes // 8))
    target = torch.empty_like(source)
    return best_s(lambda: target.copy_(source), window_s=window_s, trials=trials)
