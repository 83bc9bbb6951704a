"""The kernel benchmark: layers, figures, the roof and agreement."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor

from scripts.benchmarks import Row, kernel_models, kernels_bench, roofline
from scripts.benchmarks.kernel_cases import Case, conv_case, layer_cases, linear_case
from scripts.benchmarks.roofline import Roofline
from wattbit.errors import DataError
from wattbit.execution.kernels import find_native
from wattbit.execution.switchable import SwitchableModel
from wattbit.plan import PrecisionPlan
from wattbit.precision import precision
from workloads.sentiment_net import EncoderSize
from workloads.workload import SPLITS, Split, Workload


def test_the_layers_are_of_every_type_and_run_in_batches_of_64_or_more() -> None:
    cases = list(layer_cases())
    assert {case.kind for case in cases} == {
        "linear", "conv 3x3", "conv 1x1", "conv strided", "conv grouped", "conv depthwise",
    }  # fmt: skip
    assert {kernels_bench.LINEAR, kernels_bench.CONV} <= {case.name for case in cases}
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
        assert list(kernels_bench.layer_rows(case, Roofline(1e10), None)) == []
        return
    row = kernels_bench.layer_row(
        case, precision("int8"), native, Roofline(1e10), None, window_s=1e-4, trials=2
    )
    assert row["kernel"] == native.name
    assert row["speedup"] == pytest.approx(row["reference_ms"] / row["native_ms"])  # type: ignore[operator]
    assert 0.0 <= row["relative_error"] < 1e-5  # type: ignore[operator]
    assert row["energy"] == "no counter"
    assert row["energy_ratio"] is None


def test_the_figures_are_those_of_the_named_layers_the_encoder_and_the_worst_agreement() -> None:
    layer: Row = {"table": "layers", "precision": "int8"}
    rows: tuple[Row, ...] = (
        {"table": "roofs", "format": "fp32"},
        {**layer, "layer": kernels_bench.LINEAR, "batch": 64, "speedup": 4.0},
        {**layer, "layer": kernels_bench.LINEAR, "batch": 512, "speedup": 9.0},
        {**layer, "layer": kernels_bench.CONV, "speedup": 2.5},
        {"table": "encoder", "precision": "int8", "speedup": 1.75},
        {"table": "agreement", "precision": "int8", "agreement": 1.0},
        {"table": "agreement", "precision": "int8", "agreement": 0.9995},
    )
    assert kernels_bench.figures(rows) == {
        "linear_int8_speedup": 4.0,
        "conv_int8_speedup": 2.5,
        "encoder_int8_speedup": 1.75,
        "agreement_min": 0.9995,
    }


def test_what_no_native_kernel_runs_has_no_figure() -> None:
    assert kernels_bench.figures(({"table": "roofs", "format": "fp32"},)) == {}


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
    logits = SwitchableModel.logits

    def turned(self: SwitchableModel, parts: list[Tensor], plan: PrecisionPlan) -> Tensor:
        found = logits(self, parts, plan)
        return found if self.native_kernel(0, plan["stem"]) is None else -found

    if kernel_models.model_agreement(_small_workload()):
        monkeypatch.setattr(SwitchableModel, "logits", turned)
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
