"""The machine a report is made on: a CUDA device, what NVML says about it, and a meter where there is one."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wattbit.energy.device_sync import synchronize
from wattbit.energy.interleaved import measure_idle_w
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.nvml_devices import load_nvml
from wattbit.errors import ConfigError, MeterError, one_line
from wattbit.execution.kernels.cuda_float import has_fp32_precision


@dataclass(frozen=True, slots=True)
class Machine:
    """What the sections measure on.

    Attributes:
        device: Where tensors go.
        meter: Reads joules; None where none can be read.
        meter_problem: Why there is no meter.
        conditions: Clocks, power and temperature now.
    """

    device: torch.device
    meter: EnergyMeter | None
    meter_problem: str
    conditions: Callable[[], Mapping[str, Any]]

    @property
    def provenance(self) -> str:
        """Where energies come from; ``time only`` if there are none."""
        return "time only" if self.meter is None else self.meter.provenance


def find_machine(window_s: float) -> Machine:
    """The first CUDA device.

    Args:
        window_s: The shortest window that energy will be measured in, seconds.

    Raises:
        ConfigError: If torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        built = "finds no CUDA device" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"torch {torch.__version__} {built}, the report needs 1; run it on a machine with an NVIDIA GPU, "
            "where nvidia-smi works and torch is a CUDA build (pip install torch)"
        )
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    meter, problem = _find_meter(window_s)
    return Machine(device, meter, problem, lambda: nvml_conditions(device))


def use_exact_float32() -> None:
    """Let float32 mean float32: torch runs convolutions in TF32 unless told otherwise."""
    if has_fp32_precision():
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def describe(machine: Machine) -> dict[str, Any]:
    """What a reader must know about the device and the software."""
    facts: dict[str, Any] = {
        "name": str(machine.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "energy": machine.provenance,
    }
    if machine.meter_problem:
        facts["energy_problem"] = machine.meter_problem
    if machine.device.type != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(machine.device)
    facts |= {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    }
    return facts | nvml_facts(machine.device)


def nvml_facts(device: torch.device) -> dict[str, Any]:
    """Driver, power limits and highest clocks, as far as NVML says; else why not."""

    def ask(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
        return {
            "driver": lambda: nvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "default_power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
            "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "max_memory_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "ecc": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
            "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        }

    return _asked(device, ask)


def nvml_conditions(device: torch.device) -> dict[str, Any]:
    """Clocks, power and temperature now, as far as NVML says; else why not."""

    def ask(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
        return {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        }

    return _asked(device, ask)


def _asked(
    device: torch.device, questions: Callable[[Any, Any], dict[str, Callable[[], Any]]]
) -> dict[str, Any]:
    try:
        nvml = load_nvml()
        # By its UUID, because CUDA and NVML number GPUs each in their own way.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    except Exception as error:  # a report without these facts is better than none
        return {"nvml_problem": one_line(error)}
    answers = {}
    for name, question in questions(nvml, handle).items():
        try:
            answer = question()
        except Exception as error:  # boards differ in what they say
            answer = one_line(error)
        answers[name] = answer.decode() if isinstance(answer, bytes) else answer
    return answers


def idle_power_w(machine: Machine, seconds: float) -> float | None:
    """Power of the device while this process does nothing, watts; None where it cannot be read."""
    if machine.meter is None:
        return None
    synchronize()
    try:
        return measure_idle_w(machine.meter, seconds)
    except MeterError:
        return None


def _find_meter(window_s: float) -> tuple[EnergyMeter | None, str]:
    try:
        return NvmlMeter(min_window_s=window_s), ""
    except MeterError as error:
        return None, str(error)
