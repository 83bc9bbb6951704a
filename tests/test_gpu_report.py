"""The GPU report: the whole way, with the CPU in the GPU's place, and the command."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nvml import FakeGpu, FakeNvml
from gpu_stand_in import NO_METER, ROOT, SMALL, cpu_machine, one_clock, read_report

from scripts import gpu_report
from scripts.benchmarks.switch_bench import network
from scripts.gpu import encoder, layers
from scripts.gpu.gpu_measurer import GpuMeasurer
from scripts.gpu.machine import Machine
from scripts.gpu.record import Budget, Section
from wattbit.energy.nvml import NvmlMeter


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


# --- the whole way ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small", "float32_switches")
def test_a_report_holds_every_section_with_joules_and_where_they_are_from(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    board = FakeNvml([FakeGpu(watts=lambda seconds: 20.0)])
    on = cpu_machine(NvmlMeter(nvml=board, min_window_s=0.005, clocks=one_clock()))
    assert gpu_report.make_report(on, path, Budget(5.0), _small_sections) == ()
    report = read_report(path)
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

    assert gpu_report.make_report(cpu_machine(), path, Budget(5.0), costs_only) == ()
    report = read_report(path)
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
on = Machine(torch.device('cpu'), None, 'no counter', dict)
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
    assert read_report(tmp_path / "report.json")["complete"] is True


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
    monkeypatch.setattr(gpu_report, "find_machine", lambda window_s: cpu_machine())
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
    monkeypatch.setattr(gpu_report, "find_machine", lambda window_s: cpu_machine())
    monkeypatch.setattr(gpu_report, "default_sections", lambda *_: [("division", 1.0, body)])
    assert gpu_report.main(["--out", str(path), "--minutes", "1"]) == int(fails)
    printed = capsys.readouterr()
    assert f"wrote {path}" in printed.out
    assert ("failed sections: division" in printed.err) is fails


# --- on a device --------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.usefixtures("float32_switches")
def test_a_report_of_two_minutes_on_this_gpu_has_no_failed_section(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert gpu_report.main(["--out", str(path), "--minutes", "2"]) == 0
    report = read_report(path)
    assert report["complete"] is True
    assert report["seconds"] < 150.0
    parity = report["sections"]["encoder_parity"]["rows"]
    assert parity
    assert min(row["agreement"] for row in parity) >= 0.98
