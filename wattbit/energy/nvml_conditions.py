"""What may spoil a measurement on a GPU: heat, throttling, other people's work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wattbit.energy.nvml_devices import Gpu

_THROTTLES = ("HwSlowdown", "HwThermalSlowdown", "SwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Reasons for lower clocks that spoil a trial. The power cap is not among them: a board that runs at its cap
is doing what it does in service, and its joules are real."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of several GPUs at one moment.

    Attributes:
        temperature_c: The hottest GPU, degrees Celsius; None if none says.
        throttles: Why clocks are held down now, by GPU.
        throttled_ns: Time that heat has ever held clocks down, by GPU, nanoseconds; None if it does not say.
        foreign: Compute processes of others.
    """

    temperature_c: float | None
    throttles: tuple[str, ...]
    throttled_ns: tuple[int | None, ...]
    foreign: int


def read_conditions(nvml: Any, gpus: Sequence[Gpu]) -> Conditions:
    """The state of ``gpus`` now. What a board does not report is left out."""
    temperatures = [_ask(nvml, nvml.nvmlDeviceGetTemperature, gpu.handle, 0) for gpu in gpus]
    known = [float(value) for value in temperatures if value is not None]
    return Conditions(
        temperature_c=max(known) if known else None,
        throttles=tuple(reason for gpu in gpus for reason in _throttles(nvml, gpu)),
        throttled_ns=tuple(_throttled_ns(nvml, gpu) for gpu in gpus),
        foreign=sum(_foreign(nvml, gpu) for gpu in gpus),
    )


def detail(begin: Conditions, end: Conditions) -> dict[str, str | float]:
    """What a window's ``detail`` says about the conditions in it, under the keys that the protocol reads."""
    reasons = list(dict.fromkeys([*begin.throttles, *end.throttles]))
    for before, after in zip(begin.throttled_ns, end.throttled_ns, strict=True):
        if before is not None and after is not None and after > before:
            reasons.append(f"{(after - before) / 1e6:.3g} ms of thermal throttling")
    figures: dict[str, str | float] = {
        "throttle": ", ".join(reasons),
        "foreign_processes": float(max(begin.foreign, end.foreign)),
    }
    if begin.temperature_c is not None and end.temperature_c is not None:
        figures["temperature_begin_c"] = begin.temperature_c
        figures["temperature_end_c"] = end.temperature_c
    return figures


def _throttles(nvml: Any, gpu: Gpu) -> Iterable[str]:
    # The driver renamed throttle reasons to event reasons; older packages know the old names only.
    for word in ("Event", "Throttle"):
        ask = getattr(nvml, f"nvmlDeviceGetCurrentClocks{word}Reasons", None)
        mask = None if ask is None else _ask(nvml, ask, gpu.handle)
        if mask is not None:
            return [
                f"{name} of GPU {gpu.index}"
                for name in _THROTTLES
                if mask & getattr(nvml, f"nvmlClocks{word}Reason{'s' if word == 'Throttle' else ''}{name}", 0)
            ]
    return []


def _throttled_ns(nvml: Any, gpu: Gpu) -> int | None:
    status = _ask(nvml, nvml.nvmlDeviceGetViolationStatus, gpu.handle, nvml.NVML_PERF_POLICY_THERMAL)
    return None if status is None else int(status.violationTime)


def _foreign(nvml: Any, gpu: Gpu) -> int:
    """Number of compute processes that are not this one.

    In a container NVML may number processes as the host does. Then none has this process's number, although
    it must be among them if it uses the GPU, and one of them is taken for it.
    """
    processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, gpu.handle) or []
    numbers = {int(process.pid) for process in processes}
    if os.getpid() in numbers or (numbers and _uses_cuda()):
        return len(numbers) - 1
    return len(numbers)


def _uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _ask(nvml: Any, function: Any, *arguments: Any) -> Any:
    """The answer, or None if the board does not support the question. That it is lost is not hidden."""
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        if error.value in (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        ):
            return None
        raise
