"""Benchmarks: what the command says and writes, and that the figures are what they claim to be."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch
from fake_machine import FakeMachine, FakeMeter
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from scripts import bench
from scripts.benchmarks import BENCHMARKS, Benchmark, find_benchmark, kernel_models, kernels, roofline, switch
from scripts.benchmarks import bench_energy as energy
from scripts.benchmarks.kernel_cases import Case, conv_case, layer_cases, linear_case
from scripts.benchmarks.roofline import Roofline
from scripts.benchmarks.timing import best_s, compare_times
from wattbit.errors import ConfigError, DataError, MeterError
from wattbit.execution.kernels import find_native
from wattbit.execution.switchable import SwitchableModel
from wattbit.precision import precision
from workloads.sentiment_net import EncoderSize
from workloads.workload import SPLITS, Split, Workload

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


# --- the command --------------------------------------------------------------------------------------------


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
    bench.show(Benchmark("fake", "cpu", {}, rows), Console(width=80))
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
    assert callable(find_benchmark(name))


def test_a_benchmark_is_added_by_its_name_and_module() -> None:
    assert find_benchmark("new", {"new": "scripts.benchmarks.switch"}) is switch.run
    with pytest.raises(ConfigError, match="choose from new"):
        find_benchmark("switch", {"new": "scripts.benchmarks.switch"})


# --- timing -------------------------------------------------------------------------------------------------


class _Clock:
    """Time that passes when works run, faster or slower as the machine drifts."""

    def __init__(self, drift: float = 0.0) -> None:
        self.seconds = 0.0
        self._drift = drift

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.seconds += seconds * (1.0 + self._drift * self.seconds)

        return run


@given(ratio=st.floats(0.1, 10.0), base=st.floats(1e-5, 0.1))
@settings(deadline=None, max_examples=50)
def test_a_speedup_is_reference_time_over_candidate_time(ratio: float, base: float) -> None:
    clock = _Clock()
    timing = compare_times(clock.work(base), clock.work(base / ratio), trials=3, clock=clock)
    assert timing.speedup == pytest.approx(ratio)
    assert timing.reference_s == pytest.approx(base)
    assert timing.candidate_s == pytest.approx(base / ratio)
    assert timing.spread == pytest.approx(0.0, abs=1e-9)


def test_a_machine_that_slows_down_steadily_favours_nobody() -> None:
    clock = _Clock(drift=0.05)
    timing = compare_times(clock.work(0.01), clock.work(0.01), window_s=0.02, trials=5, clock=clock)
    assert timing.speedup == pytest.approx(1.0, abs=1e-4)


def test_a_trial_that_another_process_disturbs_does_not_move_the_median() -> None:
    clock = _Clock()
    runs = 0

    def candidate() -> None:
        nonlocal runs
        runs += 1
        clock.seconds += 5.0 if runs == 20 else 0.01

    timing = compare_times(clock.work(0.02), candidate, window_s=0.02, trials=7, clock=clock)
    assert timing.speedup == pytest.approx(2.0)


def test_work_that_a_device_still_does_is_waited_for() -> None:
    clock = _Clock()
    queued = [0.0]

    def launch(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock.seconds += 1e-4  # what launching takes
            queued[0] += seconds

        return run

    def wait() -> None:
        clock.seconds += queued[0]
        queued[0] = 0.0

    timing = compare_times(launch(0.01), launch(0.005), trials=3, clock=clock, wait=wait)
    assert timing.speedup == pytest.approx(0.0101 / 0.0051)


def test_the_best_time_is_that_of_the_undisturbed_run() -> None:
    clock = _Clock()
    runs = 0

    def work() -> None:
        nonlocal runs
        runs += 1
        clock.seconds += 0.03 if runs % 3 else 0.02

    assert best_s(work, window_s=0.02, trials=6, clock=clock) == pytest.approx(0.025, abs=0.0051)


# --- kernels ------------------------------------------------------------------------------------------------


def test_the_layers_are_of_every_type_and_run_in_batches_of_64_or_more() -> None:
    cases = list(layer_cases())
    assert {case.kind for case in cases} == {
        "linear", "conv 3x3", "conv 1x1", "conv strided", "conv grouped", "conv depthwise",
    }  # fmt: skip
    assert {kernels.LINEAR, kernels.CONV} <= {case.name for case in cases}
    assert min(case.batch for case in cases) == 64
    for case in cases:
        if case.layer.is_conv:
            assert case.x.is_contiguous(memory_format=torch.channels_last)


def test_work_and_traffic_of_a_layer_are_counted() -> None:
    linear = linear_case(32, 16, 8)
    assert linear.macs == 8 * 16 * 32
    assert linear.traffic_bytes == 4 * (8 * 32 + 8 * 16 + 16 * 32)
    conv = conv_case("conv 3x3", "cpu", 8, 16, 6, 3, stride=2, groups=4, batch=2)
    assert conv.name == "conv 8->16 3x3 6x6 stride 2 groups 4"
    assert conv.macs == 2 * 16 * 3 * 3 * (2 * 9)


@pytest.mark.parametrize("case", [linear_case(64, 32, 64), conv_case("conv 3x3", "cpu", 8, 8, 8, 3, batch=4)])
def test_a_native_layer_is_compared_with_the_reference_and_the_emulated_one(case: Case) -> None:
    native = find_native(case.layer, precision("int8"))
    if native is None:
        assert list(kernels.layer_rows(case, Roofline(1e10), None)) == []
        return
    row = kernels.layer_row(case, precision("int8"), native, Roofline(1e10), None, window_s=1e-4, trials=2)
    assert row["kernel"] == native.name
    assert row["speedup"] == pytest.approx(row["reference_ms"] / row["native_ms"])  # type: ignore[operator]
    assert 0.0 <= row["relative_error"] < 1e-5  # type: ignore[operator]
    assert row["energy"] == "no counter"
    assert row["energy_ratio"] is None


def test_the_figures_are_those_of_the_named_layers_the_encoder_and_the_worst_agreement() -> None:
    layer = {"table": "layers", "precision": "int8"}
    rows = (
        {"table": "roofs", "format": "fp32"},
        {**layer, "layer": kernels.LINEAR, "batch": 64, "speedup": 4.0},
        {**layer, "layer": kernels.LINEAR, "batch": 512, "speedup": 9.0},
        {**layer, "layer": kernels.CONV, "speedup": 2.5},
        {"table": "encoder", "precision": "int8", "speedup": 1.75},
        {"table": "agreement", "precision": "int8", "agreement": 1.0},
        {"table": "agreement", "precision": "int8", "agreement": 0.9995},
    )
    assert kernels.figures(rows) == {
        "linear_int8_speedup": 4.0,
        "conv_int8_speedup": 2.5,
        "encoder_int8_speedup": 1.75,
        "agreement_min": 0.9995,
    }


def test_what_no_native_kernel_runs_has_no_figure() -> None:
    assert kernels.figures(({"table": "roofs", "format": "fp32"},)) == {}


def test_the_share_of_the_roof_is_limited_by_work_or_by_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    case, roof = linear_case(64, 32, 64), Roofline(macs_per_s=1e9)
    monkeypatch.setattr(roofline, "copy_s", lambda traffic_bytes: 0.0)
    assert roof.share(case, "fp32", 2 * case.macs / 1e9) == pytest.approx(0.5)
    assert roof.share(case, "int8", 2 * case.macs / 1e9) == pytest.approx(0.125)
    assert roof.share(case, "fp8_e4m3", 1.0) is None
    monkeypatch.setattr(roofline, "copy_s", lambda traffic_bytes: 0.75)
    assert roof.share(case, "fp32", 1.0) == pytest.approx(0.75)


def test_the_roof_is_measured_on_this_machine() -> None:
    found = roofline.measured_roofline(window_s=1e-3, trials=1)
    assert 0.0 < found.macs_per_s < math.inf
    assert {row["format"] for row in found.rows()} == {"fp32", "int8"}
    assert 0.0 < roofline.copy_s(1 << 16, window_s=1e-4, trials=1) < 1.0


def _small_workload(name: str = "small") -> Workload:
    splits = {
        split: Split(tiny.images(40, seed=seed), torch.randint(tiny.CLASSES, (40,)))
        for seed, split in enumerate(SPLITS)
    }
    classes = tuple(map(str, range(tiny.CLASSES)))
    return Workload(name, tiny.conv_model(), splits, classes, 16, "random images")


def test_agreement_counts_the_predictions_on_the_splits_that_are_reported() -> None:
    for row in kernel_models.model_agreement(_small_workload()):
        assert row["samples"] == 40 * len(kernel_models.AGREEMENT_SPLITS)
        assert row["agreement"] >= 0.99  # type: ignore[operator]


def test_agreement_is_counted_on_no_more_samples_than_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_models, "AGREEMENT_SAMPLES", 50)
    assert all(row["samples"] == 50 for row in kernel_models.model_agreement(_small_workload()))


def test_predictions_that_differ_are_not_called_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = kernel_models._logits

    def turned(model: SwitchableModel, name: str, parts: list[Tensor]) -> Tensor:
        found = logits(model, name, parts)
        return found if model.native_kernel(0, name) is None else -found

    if kernel_models.model_agreement(_small_workload()):
        monkeypatch.setattr(kernel_models, "_logits", turned)
        assert all(row["agreement"] < 0.5 for row in kernel_models.model_agreement(_small_workload()))  # type: ignore[operator]


def test_a_workload_that_is_not_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(node: object) -> Workload:
        raise DataError("no data; get them")

    monkeypatch.setattr(kernel_models, "build_workload", missing)
    kernel_models.load_workload.cache_clear()
    assert kernel_models.load_workload("sentiment") is None
    assert kernel_models.agreement_rows(["sentiment"]) == []
    kernel_models.load_workload.cache_clear()


def test_an_encoder_with_random_weights_says_that_they_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    small = EncoderSize(layers=1, width=32, ffn_width=64, heads=4, vocabulary=50, positions=64)
    monkeypatch.setattr(kernel_models, "EncoderSize", lambda: small)
    monkeypatch.setattr(kernel_models, "load_workload", lambda name: None)
    for row in kernel_models.encoder_rows(None, trials=2):
        assert row["weights"] == "random"
        assert row["batch"] == 64
        assert row["embedding_cosine"] > 0.98  # type: ignore[operator]


def test_random_sentences_have_their_words_before_the_padding() -> None:
    tokens = kernel_models.random_tokens(7)
    mask = tokens["attention_mask"]
    assert tokens["input_ids"].shape == mask.shape == (7, kernel_models.TOKENS)
    assert (mask.diff(dim=1) <= 0).all()
    assert (mask.sum(1) >= 5).all()


# --- joules -------------------------------------------------------------------------------------------------


def test_a_counter_gives_measured_joules() -> None:
    machine = FakeMachine(watts=lambda seconds: 10.0)
    meter = FakeMeter(machine)
    columns = energy.energy_columns(
        meter, lambda: machine.work(0.5), lambda: machine.work(0.5, share=0.25), clock=machine.clock
    )
    assert columns["energy"] == "measured"
    assert columns["energy_ratio"] == pytest.approx(0.25)
    assert columns["reference_j"] == pytest.approx(5.0)
    assert columns["native_j"] == pytest.approx(1.25)


def test_a_counter_that_fails_gives_no_joules_and_says_so() -> None:
    machine = FakeMachine()
    meter = FakeMeter(machine, shortest_s=1e9)
    columns = energy.energy_columns(
        meter, lambda: machine.work(0.5), lambda: machine.work(0.5), clock=machine.clock
    )
    assert columns["energy_ratio"] is None
    assert str(columns["energy"]).startswith("failed: ")


def test_without_a_counter_joules_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MeterError("no counter here; take another machine")

    monkeypatch.setattr(energy, "RaplMeter", refuse)
    assert energy.find_counter() is None
    columns = energy.energy_columns(None, lambda: None, lambda: None)
    assert columns == {"reference_j": None, "native_j": None, "energy_ratio": None, "energy": "no counter"}


# --- switch -------------------------------------------------------------------------------------------------


def test_switching_is_timed_per_module_and_for_200_modules() -> None:
    net = switch.network(6)
    x = torch.randn(4, switch.WIDTH)
    with SwitchableModel(net, x, ["bf16", "int8"]) as model:
        model.calibrate([x])
        benchmark = switch.measure(model, x, switches=20, new_plans=5)
    figures = benchmark.figures
    assert {"us_per_module_median", "ms_200_modules_median"} <= set(figures)
    assert figures["ms_200_modules_median"] == pytest.approx(0.2 * figures["us_per_module_median"])
    assert all(row["modules"] == 6 for row in benchmark.rows if row["table"] == "switches")
    assert json.loads(benchmark.to_json())["bench"] == "switch"


def test_plans_never_seen_before_differ_from_one_another() -> None:
    plans = switch._random_plans(tuple("abcdefgh"))
    assert len({next(plans) for _ in range(50)}) > 45
