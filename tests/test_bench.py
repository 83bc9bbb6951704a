"""The benchmark command: what it says and writes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from scripts import bench
from scripts.benchmarks import BENCHMARKS, Benchmark, find_benchmark, switch_bench
from scripts.benchmarks.console_tables import show
from wattbit.errors import ConfigError

RESULT = Benchmark(
    "fake",
    "cpu: fake",
    {"speedup": 2.0, "share": 0.123456},
    (
        {"table": "layers", "layer": "linear", "ms": 1.5, "energy": None},
        {"table": "models", "model": "net", "agreement": 1.0},
    ),
)


@pytest.fixture
def fake_bench(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A benchmark called ``fake``; the list grows when it runs."""
    ran: list[str] = []
    module = ModuleType("scripts.benchmarks.fake")

    def run() -> Benchmark:
        ran.append("fake")
        return RESULT

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scripts.benchmarks.fake", module)
    monkeypatch.setitem(BENCHMARKS, "fake", "scripts.benchmarks.fake")
    return ran


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that ``arguments`` lead to, on stderr, with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        bench.main(arguments)
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_an_unknown_name_is_answered_with_the_choices_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = _refusal(["kernel"], capsys)
    assert "no benchmark 'kernel'; choose from " in line
    assert all(name in line for name in BENCHMARKS)


@pytest.mark.parametrize("arguments", [[], ["switch", "--jsn", "x"], ["switch", "kernels"]])
def test_arguments_that_do_not_fit_are_answered_with_the_usage_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "write python -m scripts.bench NAME [--json FILE]" in _refusal(arguments, capsys)


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    fake_bench: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = _refusal(["fake", "--json", str(tmp_path / "file" / "out.json")], capsys)
    assert "cannot write" in line
    assert fake_bench == []


def test_the_table_is_for_people_and_the_file_for_machines(
    fake_bench: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "out.json"
    bench.main(["fake", "--json", str(path)])
    printed = capsys.readouterr().out
    for text in ("fake on cpu: fake", "layers", "models", "linear", "1.5", "speedup", "0.1235"):
        assert text in printed
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "bench": "fake",
        "device": "cpu: fake",
        "figures": {"speedup": 2.0, "share": 0.123456},
        "rows": [dict(row) for row in RESULT.rows],
    }
    assert fake_bench == ["fake"]


def test_a_table_says_once_what_is_the_same_and_leaves_out_what_nobody_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tuple({"table": "layers", "layer": name, "kernel": "onednn", "joules": None} for name in "ab")
    show(Benchmark("fake", "cpu", {}, rows), Console(width=80))
    printed = capsys.readouterr().out
    assert printed.count("onednn") == 1
    assert "layers, kernel onednn" in printed
    assert "joules" not in printed


def test_benchmarks_run_on_one_torch_thread(fake_bench: list[str]) -> None:
    before = torch.get_num_threads()
    bench.main(["fake"])
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_figure_that_is_no_number_never_reaches_a_file() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Benchmark("fake", "cpu", {"speedup": math.nan}, ()).to_json()


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_can_be_found(name: str) -> None:
    assert callable(find_benchmark(name).run)


def test_a_benchmark_is_added_by_its_name_and_module() -> None:
    assert find_benchmark("new", {"new": "scripts.benchmarks.switch_bench"}) is switch_bench
    with pytest.raises(ConfigError, match="choose from new"):
        find_benchmark("switch", {"new": "scripts.benchmarks.switch_bench"})
