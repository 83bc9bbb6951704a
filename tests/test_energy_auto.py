"""Choosing a meter: the first counter that works, and a sentence that says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_nvml import FakeGpu, FakeNvml
from fake_powercap import FakePowercap
from torch import Tensor

from pipeline.cli import check_overrides, one_line_errors
from pipeline.energy_source import EnergySource
from pipeline.settings import build
from wattbit.energy import auto
from wattbit.energy.auto import choose_meter, counters
from wattbit.energy.device_model import DeviceModel, MemoryLevel
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.rapl import RaplMeter
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import MeterError
from wattbit.execution.switchable import SwitchableModel
from workloads.workload import Split

FALLBACK = DeviceModel(
    name="toy_device",
    source="round numbers",
    mac_pj={"int8": 0.5},
    memory=(MemoryLevel("all", None, 10.0, 1e8),),
    peak_macs_per_s={"int8": 1e12},
    conversion_pj={"float": 0.1, "int": 0.1, "block": 0.1, "widen": 0.1},
)
METER = TimePowerMeter(watts=1.0, source="a test", device="toy counter")


def works() -> EnergyMeter:
    return METER


def refuses(message: str) -> Callable[[], EnergyMeter]:
    def build() -> EnergyMeter:
        raise MeterError(message)

    return build


def must_not_run() -> EnergyMeter:
    raise AssertionError("a later candidate was built")


def test_the_first_counter_that_can_be_built_is_taken() -> None:
    meter, reason = choose_meter([("first", works), ("second", must_not_run)], FALLBACK)
    assert meter is METER
    assert reason == "Energy is estimated by first on toy counter."


def test_counters_passed_over_are_named_with_their_reasons() -> None:
    meter, reason = choose_meter([("nvml", refuses("no driver;\ninstall one.")), ("rapl", works)], FALLBACK)
    assert meter is METER
    expected = "by rapl on toy counter, as others cannot measure here (nvml: no driver; install one)."
    assert reason.endswith(expected)


def test_without_a_counter_the_declared_device_is_modelled_and_the_sentence_says_why() -> None:
    meter, reason = choose_meter(
        [("nvml", refuses("no driver")), ("rapl", refuses("not readable"))], FALLBACK
    )
    assert meter is FALLBACK
    assert reason.startswith("Energy is modelled for toy_device, ")
    assert "nvml: no driver; rapl: not readable" in reason
    assert "\n" not in reason


def test_without_candidates_the_declared_device_is_modelled() -> None:
    meter, reason = choose_meter([], FALLBACK)
    assert meter is FALLBACK
    assert reason == "Energy is modelled for toy_device, as no counter was looked for."


def test_an_error_that_is_no_meter_error_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        choose_meter([("broken", must_not_run)], FALLBACK)


# --- the counters that auto looks for ---------------------------------------------------------------------


def refusals(model_device: str) -> dict[str, str]:
    told = {}
    for name, make in counters(model_device):
        with pytest.raises(MeterError) as refused:
            make()
        told[name] = str(refused.value)
    return told


@pytest.fixture
def no_counters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a driver and without power zones."""
    FakeNvml(driver=None).install(monkeypatch)
    monkeypatch.setattr(auto, "RaplMeter", lambda: RaplMeter(root=tmp_path))


@pytest.mark.usefixtures("no_counters")
def test_nvml_is_looked_for_first_and_then_rapl_each_refusing_in_a_few_words() -> None:
    assert list(refusals("cpu")) == ["nvml", "rapl"]
    assert refusals("cuda:0")["nvml"] == "NVML cannot start (NVML error 12)"
    assert refusals("cpu")["rapl"].startswith("no RAPL power zone in ")
    assert ":" not in refusals("cpu")["rapl"]


@pytest.mark.usefixtures("no_counters")
def test_a_counter_of_a_device_that_the_model_is_not_on_is_no_counter() -> None:
    assert refusals("cpu")["nvml"] == "the model runs on cpu, which it does not count"
    assert refusals("cuda:0")["rapl"] == "the model runs on cuda:0, which it does not count"


def test_a_gpu_s_counter_is_taken_for_a_model_on_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeGpu(), FakeGpu(uuid="GPU-2")]).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter, reason = choose_meter(counters("cuda:1"), FALLBACK)
    assert reason == "Energy is measured by nvml on gpu: NVIDIA Fake 100."
    assert isinstance(meter, NvmlMeter)
    assert meter.covers("cuda:1")


def test_the_cpu_s_counter_is_taken_for_a_model_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakePowercap(tmp_path, {"intel-rapl:0": "package-0"})
    monkeypatch.setattr(auto, "RaplMeter", lambda: RaplMeter(root=tmp_path))
    _, reason = choose_meter(counters(), FALLBACK)
    assert reason.startswith("Energy is measured by rapl on cpu: ")
    assert "(nvml: the model runs on cpu, which it does not count)" in reason


# --- through the settings ---------------------------------------------------------------------------------


def energy_source(*overrides: str) -> EnergySource:
    source = build(check_overrides("train", list(overrides)).energy)
    assert isinstance(source, EnergySource)
    return source


@pytest.mark.usefixtures("no_counters")
@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["energy=nvml"], "install NVIDIA's driver"),
        (["energy=rapl", "+energy.meter.root=nowhere"], "sudo modprobe intel_rapl_msr"),
        (["energy=zeus"], "pip install 'wattbit[zeus]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_counter_that_was_asked_for_and_is_missing_ends_the_run_in_one_line_with_the_remedy(
    overrides: list[str],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        energy_source(*overrides)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert remedy in told


@pytest.mark.usefixtures("no_counters")
@pytest.mark.parametrize(
    ("override", "word"),
    [("energy=auto", "modelled"), ("energy=modelled", "modelled"), ("energy=estimated", "estimated")],
)
def test_no_sentence_calls_measured_what_is_not(override: str, word: str) -> None:
    source = energy_source(override)
    assert f"Energy is {word} " in source.note
    assert "measured" not in source.note
    assert callable(source.costs)


def test_settings_reach_the_meter_and_the_protocol(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    source = energy_source(
        "energy=estimated",
        "energy.protocol.window_s=0.001",
        "energy.protocol.trials=2",
        "energy.protocol.rules.max_cv=0.5",
        "energy.protocol.rules.attempts=50",
        f"cache_dir={tmp_path}",
    )
    split = Split(conv_inputs, torch.zeros(len(conv_inputs), dtype=torch.int64))
    first = source.costs(switchable, split).layer_cost(0, switchable.precisions[0])
    assert first is not None
    assert first.energy_j > 0
    assert (tmp_path / "measurements.json").exists()
    assert source.costs(switchable, split).layer_cost(0, switchable.precisions[0]) == first


def test_a_meter_of_gpus_is_refused_for_a_model_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, switchable: SwitchableModel, conv_inputs: Tensor
) -> None:
    FakeNvml([FakeGpu()]).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    source = energy_source("energy=nvml")
    assert source.note == "Energy is measured on gpu: NVIDIA Fake 100."
    split = Split(conv_inputs, torch.zeros(len(conv_inputs), dtype=torch.int64))
    with pytest.raises(MeterError, match="the model is on cpu"):
        source.costs(switchable, split)
