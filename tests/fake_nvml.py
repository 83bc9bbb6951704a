"""A fake of the module ``pynvml``: GPUs whose counters follow a clock, and whatever may go wrong with them.

``FakeNvml([FakeGpu()])`` behaves like the real module, on real time. Give it a clock of your own for tests
that must not wait, and change a GPU's attributes while a window is open to spoil it.
"""

# ruff: noqa: N802 - functions are named as in the module that this stands for

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest


class NVMLError(Exception):
    """As the real module's: carries NVML's number for what went wrong."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class FakeGpu:
    """One GPU; every attribute may be changed at any time.

    Attributes:
        name: Product name.
        uuid: UUID.
        watts: Power at a time, watts.
        counter: True if it counts energy.
        power: True if it reports instant power.
        refresh_s: The counter moves in steps of this length.
        offset_mj: What the counter showed at time 0.
        stuck_mj: The counter shows this and does not move.
        mig: None if it knows no MIG, else whether that is on.
        temperature_c: Degrees Celsius; None if it does not say.
        reasons: Mask of the reasons for lower clocks.
        violation_ns: Time that heat has held clocks down.
        processes: Numbers of the processes that compute on it.
        limit_w: Power limit; None if it does not say.
        lost: True if it has fallen off the bus.
    """

    name: str = "NVIDIA Fake 100"
    uuid: str = "GPU-00000000-1111"
    watts: Callable[[float], float] = lambda seconds: 200.0
    counter: bool = True
    power: bool = True
    refresh_s: float = 0.0
    offset_mj: int = 5_000_000
    stuck_mj: int | None = None
    mig: bool | None = False
    temperature_c: float | None = 50.0
    reasons: int = 0
    violation_ns: int = 0
    processes: list[int] = field(default_factory=list)
    limit_w: float | None = 700.0
    lost: bool = False


class FakeNvml:
    """Stands for the module.

    Args:
        gpus: Its GPUs, in the order of the PCI bus.
        clock: Seconds on a monotonic clock.
        driver: Version of the driver; None if there is no driver.
        old_names: True for a package from before throttle reasons were renamed to event reasons.
    """

    NVMLError = NVMLError
    NVML_SUCCESS = 0
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_TEMPERATURE_GPU = 0
    NVML_PERF_POLICY_THERMAL = 1

    def __init__(
        self,
        gpus: Sequence[FakeGpu] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        driver: str | None = "999.1",
        *,
        old_names: bool = False,
    ) -> None:
        self.gpus = [FakeGpu()] if gpus is None else list(gpus)
        self.clock = clock
        self.driver = driver
        word, plural = ("Throttle", "s") if old_names else ("Event", "")
        self.hw_thermal = 0x40
        self.sw_power_cap = 0x04
        setattr(self, f"nvmlDeviceGetCurrentClocks{word}Reasons", lambda handle: self._ask(handle).reasons)
        setattr(self, f"nvmlClocks{word}Reason{plural}HwThermalSlowdown", self.hw_thermal)
        setattr(self, f"nvmlClocks{word}Reason{plural}SwPowerCap", self.sw_power_cap)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
        """Be what ``import pynvml`` finds."""
        monkeypatch.setitem(sys.modules, "pynvml", self)
        return self

    def nvmlInit(self) -> None:
        if self.driver is None:
            raise NVMLError(self.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str | None:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> FakeGpu:
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        for gpu in self.gpus:
            if gpu.uuid == text:
                return gpu
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return self._ask(handle).name

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return self._ask(handle).uuid

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        mig = self._known(self._ask(handle).mig)
        return [int(mig), int(mig)]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: FakeGpu) -> int:
        return int(1000 * self._known(self._ask(handle).limit_w))

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return int(self._known(self._ask(handle).temperature_c))

    def nvmlDeviceGetViolationStatus(self, handle: FakeGpu, policy: int) -> Any:
        return SimpleNamespace(violationTime=self._ask(handle).violation_ns, referenceTime=0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in self._ask(handle).processes]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        gpu = self._ask(handle)
        if not gpu.counter:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        if gpu.stuck_mj is not None:
            return gpu.stuck_mj
        now = self.clock()
        if gpu.refresh_s > 0.0:
            now = math.floor(now / gpu.refresh_s) * gpu.refresh_s
        # The midpoint rule from time 0 is exact for power that is linear in time.
        return gpu.offset_mj + round(1000.0 * gpu.watts(now / 2) * now)

    def nvmlDeviceGetFieldValues(self, handle: FakeGpu, fields: Sequence[int]) -> list[Any]:
        gpu = self._ask(handle)
        found = self.NVML_SUCCESS if gpu.power else self.NVML_ERROR_NOT_SUPPORTED
        milliwatts = round(1000.0 * gpu.watts(self.clock()))
        return [SimpleNamespace(nvmlReturn=found, value=SimpleNamespace(uiVal=milliwatts)) for _ in fields]

    def _ask(self, handle: FakeGpu) -> FakeGpu:
        if handle.lost:
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return handle

    def _known(self, value: Any) -> Any:
        if value is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return value
