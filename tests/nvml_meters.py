"""Meters on made-up NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

from fake_nvml import FakeGpu, FakeNvml
from fake_time import FakeTime

from wattbit.energy.nvml import NvmlMeter

OTHER = "GPU-22222222-3333"


def make_meter(*gpus: FakeGpu, passing: FakeTime | None = None, **more: Any) -> tuple[NvmlMeter, FakeTime]:
    passing = passing or FakeTime()
    nvml = FakeNvml(gpus or None, clock=passing)
    settings_ = {"environ": {}, "wait": lambda: None, **more}
    return NvmlMeter(nvml=nvml, clocks=passing.clocks(), **settings_), passing
