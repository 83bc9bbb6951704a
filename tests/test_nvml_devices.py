"""Which GPUs are measured: those that CUDA sees, or a refusal that says what to do."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml
from nvml_meters import OTHER, make_meter

from wattbit.energy.nvml import NvmlMeter
from wattbit.errors import MeterError


def test_a_missing_package_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterError, match=r"pip install 'wattbit\[nvml\]'"):
        NvmlMeter()


def test_a_missing_driver_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(driver=None).install(monkeypatch)
    with pytest.raises(MeterError, match="install NVIDIA's driver"):
        NvmlMeter()


def test_the_installed_module_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeGpu(name="Installed")]).install(monkeypatch)
    assert NvmlMeter(environ={}).device == "gpu: Installed"


def test_a_machine_without_gpus_is_refused() -> None:
    with pytest.raises(MeterError, match="finds 0 GPUs"):
        NvmlMeter(nvml=FakeNvml([]), environ={})


def test_mig_mode_is_refused_by_name_with_the_command_that_ends_it() -> None:
    with pytest.raises(MeterError, match=r"GPU 1 \(A100\) is in MIG mode.*nvidia-smi -i 1 -mig 0"):
        make_meter(FakeGpu(name="A100"), FakeGpu(name="A100", uuid=OTHER, mig=True), gpus=[1])


def test_a_board_without_a_source_is_refused_by_name() -> None:
    with pytest.raises(MeterError, match=r"GPU 0 \(Tesla K80\) has no energy counter and no instant power"):
        make_meter(FakeGpu(name="Tesla K80", counter=False, power=False))
    with pytest.raises(MeterError, match=r"GPU 0 \(Tesla K80\) has no energy counter, "):
        make_meter(FakeGpu(name="Tesla K80", counter=False), source="counter")


def visible(*gpus: FakeGpu, wanted: list[Any], **environ: str) -> list[int]:
    meter, _ = make_meter(*gpus, gpus=wanted, environ=environ)
    measured = [key.rpartition(" ")[2] for key in meter.lock_keys]
    return [[gpu.uuid for gpu in gpus].index(uuid) for uuid in measured]


def two() -> tuple[FakeGpu, FakeGpu]:
    return FakeGpu(uuid="GPU-aaaa-1"), FakeGpu(uuid="GPU-bbbb-2")


def test_numbers_are_cuda_s_after_cuda_visible_devices() -> None:
    assert visible(*two(), wanted=[0]) == [0]
    assert visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="1") == [1]
    assert visible(*two(), wanted=[1, 0], CUDA_VISIBLE_DEVICES="1, 0") == [0, 1]
    assert visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="GPU-bbbb") == [1]
    # CUDA stops at the first entry that it does not know.
    with pytest.raises(MeterError, match="CUDA sees 1 of 2 GPUs"):
        visible(*two(), wanted=[1], CUDA_VISIBLE_DEVICES="1,7,0")


def test_uuids_and_their_beginnings_name_a_gpu() -> None:
    assert visible(*two(), wanted=["GPU-bbbb-2"]) == [1]
    assert visible(*two(), wanted=["GPU-b"]) == [1]
    with pytest.raises(MeterError, match="fits no GPU, or several; choose from GPU-aaaa-1, GPU-bbbb-2"):
        visible(*two(), wanted=["GPU-"])


def test_different_models_have_no_number_unless_cuda_counts_along_the_bus() -> None:
    mixed = FakeGpu(name="T4", uuid="GPU-aaaa-1"), FakeGpu(name="H100", uuid="GPU-bbbb-2")
    with pytest.raises(MeterError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID"):
        visible(*mixed, wanted=[0])
    assert visible(*mixed, wanted=[1], CUDA_DEVICE_ORDER="PCI_BUS_ID") == [1]
    assert visible(*mixed, wanted=[0], CUDA_VISIBLE_DEVICES="GPU-bbbb-2") == [1]
    assert visible(*mixed, wanted=["GPU-bbbb-2"]) == [1]


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_are_not_measured(value: str) -> None:
    with pytest.raises(MeterError, match="CUDA sees 0 of 2 GPUs"):
        visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES=value)


def test_a_mig_instance_in_cuda_visible_devices_is_refused_by_name() -> None:
    with pytest.raises(MeterError, match="names the MIG instance MIG-1234"):
        visible(*two(), wanted=[0], CUDA_VISIBLE_DEVICES="MIG-1234")


@pytest.mark.parametrize(("wanted", "told"), [([], "no GPU given"), ([0, 0], "GPU 0 is given twice")])
def test_gpus_that_make_no_sense_are_refused(wanted: list[int], told: str) -> None:
    with pytest.raises(MeterError, match=told):
        visible(*two(), wanted=wanted)


@pytest.mark.parametrize(
    "bad", [{"min_window_s": 0.0}, {"sampling_s": float("nan")}, {"min_window_s": float("inf")}]
)
def test_times_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(MeterError, match="must be above 0 and finite"):
        make_meter(**bad)


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterError, match="unknown source 'magic'; choose from counter, power"):
        make_meter(source="magic")


def test_a_meter_covers_the_gpus_it_reads_and_nothing_else() -> None:
    meter, _ = make_meter(*two(), gpus=[1])
    assert meter.covers("cuda:1")
    assert not meter.covers("cuda:0")
    assert not meter.covers("cuda")
    assert not meter.covers("cpu")
    first, _ = make_meter(*two())
    assert first.covers("cuda")
