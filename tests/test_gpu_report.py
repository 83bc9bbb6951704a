"""The GPU report: the whole way, with the CPU in the GPU's place, and with everything failing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_machine import FakeMachine, FakeMeter
from fake_nvml import FakeGpu, FakeNvml
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import gpu_report
from scripts.benchmarks.switch import network
from scripts.gpu import encoder, layers, machine
from scripts.gpu.machine import (
    Machine,
    describe,
    idle_power_w,
    nvml_conditions,
    nvml_facts,
    use_exact_float32,
)
from scripts.gpu.measure import GpuMeasurer
from scripts.gpu.record import Budget, Report, Section, describe_error, jsonable
from wattbit.energy.counter import Clocks
from wattbit.energy.meter import Energy
from wattbit.energy.nvml import NvmlMeter
from wattbit.energy.time_power import TimePowerMeter
from wattbit.errors import ConfigError, MeterError, OutputError
from workloads.sentiment_net import EncoderSize

ROOT = Path(__file__).parent.parent
SMALL = EncoderSize(layers=1, width=32, ffn_width=64, heads=4, vocabulary=50, positions=128)
NO_METER = "no counter on this machine; take another"


def _cpu(meter: Any = None, problem: str = NO_METER) -> Machine:
    return Machine(
        torch.device("cpu"), lambda: None, meter, "" if meter else problem, lambda: {"power_w": 5.0}
    )


def _one_clock() -> Clocks:
    """Real time, read once for both clocks: a busy machine cannot come in between."""
    last_ns = 0

    def read_ns() -> int:
        nonlocal last_ns
        last_ns = time.perf_counter_ns()
        return last_ns

    return Clocks(read_ns, lambda: last_ns)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and networks of toy size."""
    monkeypatch.setattr(layers, "LINEARS", ((64, 32, 40),))
    monkeypatch.setattr(layers, "CONVS", (("conv 3x3", 8, 16, 8, 3, 1),))
    monkeypatch.setattr(layers, "ATTENTION", (2, 2, 8, 8))
    monkeypatch.setattr(layers, "ODD_LINEARS", ((20, 10, 17),))
    monkeypatch.setattr(encoder, "network", lambda: network(4))
    monkeypatch.setattr(gpu_report, "IDLE_S", 0.05)


def _small_sections(on: Machine, idle_w: float | None, trials: int) -> list[gpu_report.SectionPlan]:
    """The sections as they are, with short windows and a small encoder."""
    short = GpuMeasurer(on, window_s=0.005, trials=trials, idle_w=idle_w, sleep=lambda seconds: None)
    abba = partial(encoder.abba, window_s=0.005, trials=trials, idle_w=idle_w, size=SMALL)
    return [
        ("layer_parity", 0.5, partial(layers.parity, machine=on)),
        ("encoder_parity", 0.5, partial(encoder.parity, machine=on, size=SMALL)),
        ("switching", 0.5, partial(encoder.switching, machine=on)),
        ("repeatability", 0.5, partial(encoder.repeatability, machine=on, window_s=0.005, size=SMALL)),
        ("encoder", 0.5, partial(encoder.end_to_end, machine=on, measurer=short, size=SMALL)),
        ("encoder_abba", 0.5, partial(abba, machine=on)),
        ("layers", 1.0, partial(layers.costs, machine=on, measurer=short)),
    ]


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


# --- the whole way ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small", "float32_switches")
def test_a_report_holds_every_section_with_joules_and_where_they_are_from(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    board = FakeNvml([FakeGpu(watts=lambda seconds: 20.0)])
    on = _cpu(NvmlMeter(nvml=board, min_window_s=0.005, clocks=_one_clock()))
    assert gpu_report.make_report(on, path, Budget(5.0), _small_sections) == ()
    report = _read(path)
    assert report["complete"] is True
    assert report["device"]["energy"] == "measured"
    assert report["idle_w"] > 0.0
    sections = report["sections"]
    assert {name: content["status"] for name, content in sections.items()} == dict.fromkeys(
        [name for name, _, _ in gpu_report.default_sections(on, None, 2)], "ok"
    )
    assert not [row for content in sections.values() for row in content["rows"] if "error" in row]
    measured = [*sections["layers"]["rows"], *sections["encoder"]["rows"], *sections["encoder_abba"]["rows"]]
    assert {row["provenance"] for row in measured} == {"measured"}
    assert all(row["energy_ratio"] > 0.0 for row in measured)
    assert len(sections["repeatability"]["rows"]) >= 5
    assert set(sections["repeatability"]["cv"]) == {
        f"{what}_{quantity}"
        for what in ("reference", "candidate", "ratio")
        for quantity in ("energy_j", "seconds")
    }
    assert sections["switching"]["figures"]["us_per_module_median"] > 0.0
    natives = [row for row in sections["layer_parity"]["rows"] if row["runs"] == "native"]
    assert all(row["relative_error"] < 1e-5 and row["argmax_agreement"] == 1.0 for row in natives)


@pytest.mark.usefixtures("small", "float32_switches")
def test_without_a_counter_the_report_holds_times_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def costs_only(*arguments: Any) -> list[gpu_report.SectionPlan]:
        return [plan for plan in _small_sections(*arguments) if not plan[0].endswith(("parity", "switching"))]

    assert gpu_report.make_report(_cpu(), path, Budget(5.0), costs_only) == ()
    report = _read(path)
    assert report["device"]["energy"] == "time only"
    assert report["device"]["energy_problem"] == NO_METER
    assert report["idle_w"] is None
    for name in ("layers", "encoder"):
        for row in report["sections"][name]["rows"]:
            assert row["provenance"] == "time only"
            assert row["energy_problem"] == NO_METER
            assert row["ms"] > 0.0
            assert not [key for key in row if key.endswith("_j")]
    assert report["sections"]["encoder_abba"]["energy_problem"] == NO_METER
    assert set(report["sections"]["repeatability"]["cv"]) == {
        "reference_seconds", "candidate_seconds", "ratio_seconds",
    }  # fmt: skip
    assert "measured" not in path.read_text(encoding="utf-8")


def test_the_report_needs_torch_numpy_and_nothing_else(tmp_path: Path) -> None:
    blocked = (
        "hydra omegaconf rich sklearn yaml gymnasium stable_baselines3 sb3_contrib matplotlib scipy jinja2 "
        "transformers tokenizers"
    )
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked.split()!r}:
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Block())
import torch
from pathlib import Path
from scripts import gpu_report
from scripts.gpu.machine import Machine
from scripts.gpu.record import Budget
on = Machine(torch.device('cpu'), lambda: None, None, 'no counter', dict)
names = [name for name, _, _ in gpu_report.default_sections(on, None, 2)]
none = lambda *_: [(name, 0.1, lambda section: None) for name in names]
assert gpu_report.make_report(on, Path({str(tmp_path / "report.json")!r}), Budget(1.0), none) == ()
torch.cuda.is_available = lambda: False
sys.exit(gpu_report.main([]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "blocked" not in done.stderr
    assert _read(tmp_path / "report.json")["complete"] is True


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("built_with", [None, "12.8"])
def test_without_a_cuda_device_one_line_says_what_to_do(
    built_with: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    assert gpu_report.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert ("is built without CUDA" if built_with is None else "finds no CUDA device") in printed.err
    assert "nvidia-smi" in printed.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--minutes", "0"], "0 minutes: must be above 0"),
        (["--minutes", "nan"], "nan minutes: must be above 0"),
        (["--minutes", "soon"], "write python -m scripts.gpu_report [--out FILE] [--minutes N]"),
        (["--output", "x"], "write python -m scripts.gpu_report [--out FILE] [--minutes N]"),
    ],
)
def test_arguments_that_do_not_fit_are_answered_in_one_line(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(arguments) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("float32_switches")
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "find_machine", lambda window_s: _cpu())
    monkeypatch.setattr(gpu_report, "default_sections", lambda *_: [("never", 1.0, pytest.fail)])
    assert gpu_report.main(["--out", str(tmp_path / "missing" / "report.json")]) == 2
    assert "give another file to --out" in capsys.readouterr().err


@pytest.mark.usefixtures("float32_switches")
@pytest.mark.parametrize("fails", [False, True])
def test_the_exit_code_says_whether_a_section_failed(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(section: Section) -> None:
        section.add({"figure": 1 / (0 if fails else 1)})

    path = tmp_path / "report.json"
    monkeypatch.setattr(gpu_report, "find_machine", lambda window_s: _cpu())
    monkeypatch.setattr(gpu_report, "default_sections", lambda *_: [("division", 1.0, body)])
    assert gpu_report.main(["--out", str(path), "--minutes", "1"]) == int(fails)
    printed = capsys.readouterr()
    assert f"wrote {path}" in printed.out
    assert ("failed sections: division" in printed.err) is fails


# --- the record ---------------------------------------------------------------------------------------------


class _Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> _Time:
    return _Time()


@pytest.fixture
def report(tmp_path: Path, clock: _Time) -> Report:
    """A report that may take one minute."""
    return Report(tmp_path / "report.json", Budget(1.0, clock), {"device": {}})


def test_a_section_that_fails_keeps_its_rows_and_does_not_lose_the_others(
    report: Report, tmp_path: Path
) -> None:
    def fail(section: Section) -> None:
        section.add({"figure": 1})
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    report.run("first", fail, share=0.5)
    report.run("second", lambda section: section.add({"figure": 2}), share=0.5)
    report.finish({})
    sections = _read(tmp_path / "report.json")["sections"]
    assert sections["first"]["status"] == "failed"
    assert sections["first"]["error"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert sections["first"]["rows"] == [{"figure": 1}]
    assert sections["second"]["status"] == "ok"
    assert report.failed == ("first",)


def test_every_row_is_on_disk_before_the_next_is_measured(report: Report, tmp_path: Path) -> None:
    def interrupted(section: Section) -> None:
        section.add({"figure": 1})
        assert _read(tmp_path / "report.json")["sections"]["first"]["rows"] == [{"figure": 1}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.run("first", interrupted, share=1.0)
    kept = _read(tmp_path / "report.json")
    assert kept["complete"] is False
    assert kept["sections"]["first"]["rows"] == [{"figure": 1}]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]


def test_a_section_for_which_no_time_is_left_is_skipped_and_says_so(
    report: Report, clock: _Time, tmp_path: Path
) -> None:
    clock.seconds += 59.5
    report.run("late", lambda section: pytest.fail("it ran"), share=1.0)
    content = _read(tmp_path / "report.json")["sections"]["late"]
    assert content["status"] == "skipped"
    assert "s are left, it needs 1" in content["reason"]


def test_a_section_leaves_the_time_of_others_to_them(report: Report, clock: _Time, tmp_path: Path) -> None:
    def greedy(section: Section) -> None:
        for item in section.within_time(range(100), 5.0, str):
            clock.seconds += 5.0
            section.add({"item": item})

    report.run("greedy", greedy, share=0.5)
    content = _read(tmp_path / "report.json")["sections"]["greedy"]
    assert content["status"] == "partial"
    assert content["rows"] == [{"item": item} for item in range(6)]
    assert content["left_out"] == [str(item) for item in range(6, 100)]


@given(seconds=st.lists(st.floats(0.1, 30.0), min_size=1, max_size=30), share=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=30)
def test_items_of_known_length_never_overrun_the_budget(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], share: float
) -> None:
    clock = _Time()
    report = Report(tmp_path_factory.mktemp("report") / "report.json", Budget(1.0, clock), {})

    def body(section: Section) -> None:
        for _ in section.within_time(range(20), max(seconds), str):
            clock.seconds += seconds[0]

    for number in range(4):
        report.run(str(number), body, share=share)
    assert clock.seconds <= 160.0


def test_a_file_that_vanishes_under_the_report_ends_it(report: Report, tmp_path: Path) -> None:
    def body(section: Section) -> None:
        (tmp_path / "report.json").unlink()
        (tmp_path / "report.json").mkdir()
        section.add({})

    with pytest.raises(OutputError, match="cannot write"):
        report.run("first", body, share=1.0)


def test_an_attempt_that_fails_is_a_row_with_its_error(report: Report, tmp_path: Path) -> None:
    def body(section: Section) -> None:
        section.attempt({"layer": "a"}, lambda: {"ms": float("nan")})
        section.attempt({"layer": "b"}, lambda: {"ms": 1 / 0})

    report.run("layers", body, share=1.0)
    assert _read(tmp_path / "report.json")["sections"]["layers"]["rows"] == [
        {"layer": "a", "ms": "nan"},
        {"layer": "b", "error": "ZeroDivisionError: division by zero"},
    ]


def test_what_json_has_no_word_for_becomes_text() -> None:
    assert jsonable({"a": (float("inf"), 1.0, None, True), 2: [float("nan")]}) == {
        "a": ["inf", 1.0, None, True],
        "2": ["nan"],
    }
    assert describe_error(ValueError()) == "ValueError"


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_budget_is_a_length_of_time(minutes: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1440"):
        Budget(minutes)


# --- measuring ----------------------------------------------------------------------------------------------


def _measurer(
    meter: Any, fake: FakeMachine, *, window_s: float = 1.0, trials: int = 2, problem: str = NO_METER
) -> GpuMeasurer:
    return GpuMeasurer(
        _cpu(meter, problem),
        window_s=window_s,
        trials=trials,
        idle_w=1.0,
        sleep=lambda s: None,
        clock=fake.clock,
    )


def _works(fake: FakeMachine) -> dict[str, Callable[[], object]]:
    return {
        "fp32": lambda: fake.work(0.1),
        "half": lambda: fake.work(0.05),
        "cool": lambda: fake.work(0.1, share=0.25),
    }


def test_a_rotation_gives_time_and_energy_of_every_work_and_ratios_to_the_first() -> None:
    fake = FakeMachine(watts=lambda seconds: 20.0)
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=1e9)
    assert list(rows) == ["fp32", "half", "cool"]
    assert rows["fp32"]["energy_ratio"] == rows["fp32"]["speedup"] == 1.0
    assert rows["half"]["speedup"] == pytest.approx(2.0)
    assert rows["half"]["energy_ratio"] == pytest.approx(0.5)
    assert rows["cool"]["speedup"] == pytest.approx(1.0)
    assert rows["cool"]["energy_ratio"] == pytest.approx(0.25)
    assert rows["cool"]["energy_j"] == pytest.approx(0.5)
    assert rows["cool"]["watts"] == pytest.approx(5.0)
    assert rows["cool"]["energy_above_idle_j"] == pytest.approx(0.4)
    assert all(row["provenance"] == "measured" and row["cautions"] == [] for row in rows.values())


@given(drift=st.floats(-0.002, 0.002), windows=st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_power_that_drifts_steadily_favours_no_work(drift: float, windows: int) -> None:
    fake = FakeMachine(watts=lambda seconds: 20.0 * (1.0 + drift * seconds))
    works = {str(number): lambda: fake.work(0.1) for number in range(windows)}
    rows = _measurer(FakeMeter(fake), fake).rotate(works, left_s=1e9)
    assert all(row["energy_ratio"] == pytest.approx(1.0, rel=1e-6) for row in rows.values())


def test_a_work_that_fails_loses_no_other() -> None:
    fake = FakeMachine()

    def fail() -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    rows = _measurer(FakeMeter(fake), fake).rotate({**_works(fake), "fp8": fail}, left_s=1e9)
    assert rows["fp8"] == {"error": "RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"}
    assert rows["half"]["energy_ratio"] == pytest.approx(0.5)


def test_a_reference_that_fails_leaves_ratios_to_the_next_work() -> None:
    fake = FakeMachine()
    rows = _measurer(FakeMeter(fake), fake).rotate({"fp32": lambda: 1 / 0, **_works(fake)}, left_s=1e9)
    assert rows["fp32"]["speedup"] == 1.0
    only_failing = _measurer(FakeMeter(fake), fake).rotate({"fp32": lambda: 1 / 0}, left_s=1e9)
    assert set(only_failing["fp32"]) == {"error"}


def test_a_meter_that_refuses_leaves_times_and_is_asked_no_more_after_three_refusals() -> None:
    fake = FakeMachine()
    meter = FakeMeter(fake, shortest_s=1e9)
    measurer = _measurer(meter, fake)
    for attempt in range(5):
        before = meter.windows
        rows = measurer.rotate(_works(fake), left_s=1e9)
        assert rows["half"]["provenance"] == "time only"
        assert rows["half"]["speedup"] == pytest.approx(2.0)
        assert "energy_j" not in rows["half"]
        assert (meter.windows > before) is (attempt < 3)
    assert rows["half"]["energy_problem"] == "the meter failed 3 times in a row"


def test_energy_for_which_there_is_no_time_is_left_out_and_says_so() -> None:
    fake = FakeMachine()
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=5.0)
    assert rows["half"]["provenance"] == "time only"
    assert rows["half"]["energy_problem"] == "energy needs 13 s, 5 are left"


def test_a_rotation_takes_no_longer_than_it_was_granted() -> None:
    fake = FakeMachine()
    left_s = 13.3
    start = fake.seconds
    rows = _measurer(FakeMeter(fake), fake).rotate(_works(fake), left_s=left_s)
    assert rows["half"]["provenance"] == "measured"
    assert fake.seconds - start <= 1.25 * left_s


class _Spoiled(FakeMeter):
    """Its windows say that another process used the device."""

    def window(self) -> Any:
        outer = super().window

        class Window:
            def __enter__(self) -> Any:
                self._context = outer()
                self._window = self._context.__enter__()
                return self

            def __exit__(self, *error: object) -> None:
                self._context.__exit__(*error)

            @property
            def result(self) -> Energy:
                return replace(self._window.result, detail={"foreign_processes": 1.0})

        return Window()


def test_what_the_protocol_would_throw_away_is_kept_with_a_caution() -> None:
    fake = FakeMachine()
    rows = _measurer(_Spoiled(fake), fake).rotate(_works(fake), left_s=1e9)
    assert rows["half"]["cautions"] == ["1 foreign processes on the device"]


def test_idle_power_is_none_where_it_cannot_be_read() -> None:
    assert idle_power_w(_cpu(), seconds=0.01) is None

    class Failing:
        device, provenance = "gpu", "measured"

        def window(self) -> Any:
            raise MeterError("lost")

    assert idle_power_w(_cpu(Failing()), seconds=0.01) is None


# --- the machine --------------------------------------------------------------------------------------------


@pytest.fixture
def float32_switches() -> Iterator[None]:
    """Puts back what a report switches for the whole process."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = conv.fp32_precision, matmul.fp32_precision
    yield
    conv.fp32_precision, matmul.fp32_precision = before


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
    facts = describe(Machine(torch.device("cuda:0"), lambda: None, None, "no counter", dict))
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


# --- plans of the encoder -----------------------------------------------------------------------------------


def test_only_plans_that_run_natively_are_measured() -> None:
    with encoder.attached_encoder(torch.device("cpu"), SMALL) as (model, _):
        found = encoder.plans(model)
        for _, plan in found:
            for index, layer in enumerate(model.layer_names):
                assert model.native_kernel(index, plan[layer]) is not None
    with encoder.attached_encoder(torch.device("cpu"), SMALL, native=False) as (model, _):
        assert encoder.plans(model) == []


def test_a_mixed_plan_tells_attention_from_feed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    with encoder.attached_encoder(torch.device("cpu"), SMALL) as (model, _):
        layer_names = model.layer_names

        def native(index: int, name: str) -> str | None:
            # As on a device that runs everything, but no int4_wo for so few classes.
            return None if (name, layer_names[index]) == ("int4_wo", "head") else name

        monkeypatch.setattr(model, "native_kernel", native)
        found = dict(encoder.plans(model))
    assert len(found) == len(encoder.OFFERED) + len(encoder.MIXED)
    mixed = found["int8 attention, bf16 feed-forward"]
    assert mixed["encoder.layer0.attention.query"] == "int8"
    assert mixed["encoder.layer0.ffn.up"] == "bf16"
    assert found["uniform int4_wo"]["head"] == "fp32"
    assert found["uniform int8"]["head"] == "int8"


def test_where_nothing_runs_natively_the_reference_shows_the_scatter(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "plans", lambda model: [])
    body = partial(encoder.repeatability, machine=_cpu(), window_s=0.002, size=SMALL)
    report.run("repeatability", body, share=1.0)
    content = _read(tmp_path / "report.json")["sections"]["repeatability"]
    assert content["works"] == ["reference", "reference"]
    assert content["status"] == "ok"


def test_the_spread_is_the_standard_deviation_over_the_mean() -> None:
    rows = [
        {"reference": {"seconds": before}, "candidate": {"seconds": after}}
        for before, after in ((1.0, 2.0), (2.0, 4.0), (3.0, 6.0))
    ]
    found = encoder.spreads(rows)
    assert found["reference_seconds"] == pytest.approx(0.5)
    assert found["candidate_seconds"] == pytest.approx(0.5)
    assert found["ratio_seconds"] == pytest.approx(0.0)
    assert encoder.spreads(rows[:1]) == {}


# --- on a device --------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.usefixtures("float32_switches")
def test_a_report_of_two_minutes_on_this_gpu_has_no_failed_section(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert gpu_report.main(["--out", str(path), "--minutes", "2"]) == 0
    report = _read(path)
    assert report["complete"] is True
    assert report["seconds"] < 150.0
    parity = report["sections"]["encoder_parity"]["rows"]
    assert parity
    assert min(row["agreement"] for row in parity) >= 0.98
