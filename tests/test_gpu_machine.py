"""The machine of a GPU report: described as far as it answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.gpu import machine
from scripts.gpu.machine import Machine, describe, nvml_conditions, nvml_facts, use_exact_float32
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import MeterError


@pytest.mark.usefixtures("float32_switches")
def test_the_reference_of_a_report_is_float32_without_tf32() -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    use_exact_float32()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


class AskedBoard:
    """Stands for ``pynvml``: answers some questions and refuses others, as boards do."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """What NVML raises."""

    def __getattr__(self, name: str) -> Any:
        answers: Mapping[str, Any] = {
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlSystemGetDriverVersion": lambda: b"570.86",
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980 if kind == 1 else 2619,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1755,
            "nvmlDeviceGetTemperature": lambda handle, kind: 41,
            "nvmlDeviceGetPowerUsage": lambda handle: 120_500,
        }

        def refuse(*arguments: object) -> None:
            raise self.NVMLError("Not Supported")

        return answers.get(name, refuse)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that can be described, but not computed on."""
    properties = SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=85 * 10**9, uuid="abc"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(machine, "load_nvml", AskedBoard)


@pytest.mark.usefixtures("fake_cuda")
def test_the_device_is_described_as_far_as_it_answers() -> None:
    facts = describe(Machine(torch.device("cuda:0"), None, "no counter", dict))
    assert facts["name"] == "NVIDIA H100"
    assert facts["compute_capability"] == "9.0"
    assert facts["driver"] == "570.86"
    assert facts["power_limit_w"] == 700.0
    assert facts["max_sm_clock_mhz"] == 1980
    assert facts["ecc"] == "NVMLError: Not Supported"
    assert facts["energy_problem"] == "no counter"
    assert nvml_conditions(torch.device("cuda:0")) == {
        "sm_clock_mhz": 1755, "memory_clock_mhz": 1755, "temperature_c": 41, "power_w": 120.5,
    }  # fmt: skip


@pytest.mark.usefixtures("fake_cuda")
def test_a_machine_without_nvml_is_described_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MeterError("NVML needs the Python package nvidia-ml-py")

    monkeypatch.setattr(machine, "load_nvml", missing)
    facts = nvml_facts(torch.device("cuda:0"))
    assert facts == {"nvml_problem": "MeterError: NVML needs the Python package nvidia-ml-py"}


@pytest.mark.usefixtures("fake_cuda")
def test_a_cuda_device_whose_counter_cannot_be_read_is_used_for_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**arguments: object) -> None:
        raise MeterError("GPU 0 is in MIG mode")

    monkeypatch.setattr(machine, "NvmlMeter", refuse)
    found = machine.find_machine(1.0)
    assert found.device == torch.device("cuda:0")
    assert found.provenance == "time only"
    assert found.meter_problem == "GPU 0 is in MIG mode"


@pytest.mark.usefixtures("fake_cuda")
def test_a_cuda_device_with_a_counter_is_measured_in_windows_as_short_as_the_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, object] = {}

    def meter(**arguments: object) -> TimePowerMeter:
        asked.update(arguments)
        return TimePowerMeter(10.0, "a test")

    monkeypatch.setattr(machine, "NvmlMeter", meter)
    assert machine.find_machine(1.0).provenance == "estimated"
    assert asked == {"min_window_s": 1.0}
