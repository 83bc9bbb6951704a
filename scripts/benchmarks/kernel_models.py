"""Whole models under native kernels: how much faster an encoder runs, and how many predictions change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.preparation import build_workload
from pipeline.settings import compose_training
from scripts.benchmarks import Row
from scripts.benchmarks.energy_columns import energy_columns
from scripts.benchmarks.timing import compare_times
from wattbit.energy.meter import EnergyMeter
from wattbit.errors import DataError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, batches, num_samples, select
from wattbit.plan import PrecisionPlan
from wattbit.precision import PRECISIONS
from workloads.classifier_training import seeded
from workloads.sentiment_net import EncoderSize, SentimentNet
from workloads.workload import Workload

BATCH = 64
TOKENS = 56
CALIBRATE = 128
AGREEMENT_SPLITS = ("search", "certify", "test")
AGREEMENT_SAMPLES = 2048
"""The first samples, at most this many: enough to see one prediction in a thousand differ."""


def encoder_rows(counter: EnergyMeter | None, *, trials: int = 5) -> list[Row]:
    """MiniLM-L6 with each precision that is native for it, uniform, against float32, on one batch.

    Where the sentiment workload cannot be had, a network of the same shape with random weights stands in,
    and the row says so.
    """
    workload = load_workload("sentiment")
    net: nn.Module = seeded(lambda: SentimentNet(EncoderSize(), 2), 0) if workload is None else workload.model
    inputs: Inputs = random_tokens() if workload is None else workload.splits["calibrate"].inputs
    weights = "random" if workload is None else "of the sentiment workload"
    calibrate, batch = select(inputs, slice(0, CALIBRATE)), select(inputs, slice(0, BATCH))
    with SwitchableModel(net, select(inputs, slice(0, 2)), list(PRECISIONS)) as model:
        model.calibrate(batches(calibrate, BATCH))
        return [
            _encoder_row(model, name, batch, weights, counter, trials) for name in native_precisions(model)
        ]


def agreement_rows(names: Sequence[str] = ("digits", "sentiment")) -> list[Row]:
    """The share of samples that native and emulated kernels classify alike, for each workload here."""
    rows = []
    for name in names:
        workload = load_workload(name)
        if workload is not None:
            rows += model_agreement(workload)
    return rows


@torch.inference_mode()
def model_agreement(workload: Workload) -> list[Row]:
    """One row for each precision that is native for some layer of the workload's model."""
    parts = _samples(workload)
    example = select(parts[0], slice(0, 2))
    with SwitchableModel(workload.model, example, list(PRECISIONS)) as model:
        calibration = model.calibrate(batches(workload.splits["calibrate"].inputs, workload.batch_size))
        native = {name: _logits(model, name, parts) for name in native_precisions(model)}
    rows: list[Row] = []
    with SwitchableModel(workload.model, example, list(PRECISIONS), native=False) as model:
        model.load_calibration(calibration)
        for name, found in native.items():
            expected = _logits(model, name, parts)
            rows.append(
                {
                    "table": "agreement",
                    "workload": workload.name,
                    "precision": name,
                    "samples": len(found),
                    "agreement": float((found.argmax(1) == expected.argmax(1)).double().mean()),
                    "relative_error": float((found - expected).norm() / expected.norm()),
                }
            )
    return rows


def _samples(workload: Workload) -> list[Inputs]:
    """Batches of `AGREEMENT_SPLITS`, up to `AGREEMENT_SAMPLES` samples."""
    parts: list[Inputs] = []
    left = AGREEMENT_SAMPLES
    for name in AGREEMENT_SPLITS:
        for part in batches(workload.splits[name].inputs, workload.batch_size):
            if left > 0:
                parts.append(select(part, slice(0, left)))
                left -= num_samples(part)
    return parts


def native_precisions(model: SwitchableModel) -> list[str]:
    """The precisions, besides the reference, that a native kernel runs for most of the model's layers."""
    layers = range(len(model.layer_names))
    return [
        precision.name
        for precision in model.precisions[1:]
        if 2 * sum(model.native_kernel(index, precision.name) is not None for index in layers) > len(layers)
    ]


@cache
def load_workload(name: str) -> Workload | None:
    """A workload in its default configuration; None if its data are not on this machine."""
    settings = compose_training([f"workload={name}", "energy=modelled"])
    try:
        return build_workload(settings.workload)
    except DataError:
        return None


def random_tokens(samples: int = CALIBRATE) -> dict[str, Tensor]:
    """Sentences of random words, as long as those of the sentiment workload."""
    size, generator = EncoderSize(), torch.Generator().manual_seed(0)
    lengths = torch.randint(5, TOKENS + 1, (samples, 1), generator=generator)
    return {
        "input_ids": torch.randint(size.vocabulary, (samples, TOKENS), generator=generator),
        "attention_mask": (torch.arange(TOKENS) < lengths).long(),
    }


@torch.inference_mode()
def _encoder_row(
    model: SwitchableModel,
    name: str,
    batch: Inputs,
    weights: str,
    counter: EnergyMeter | None,
    trials: int,
) -> Row:
    plan, reference = PrecisionPlan.uniform(model.layer_names, name), model.reference_plan
    run_reference, run_plan = lambda: model.run(batch, reference), lambda: model.run(batch, plan)
    timing = compare_times(run_reference, run_plan, trials=trials)
    model.switch(reference)
    expected = _embedding(model.model, batch)
    model.switch(plan)
    cosine = float(F.cosine_similarity(_embedding(model.model, batch), expected).mean())
    return {
        "table": "encoder",
        "model": "MiniLM-L6",
        "weights": weights,
        "batch": BATCH,
        "tokens": TOKENS,
        "precision": name,
        "reference_ms": timing.reference_s * 1e3,
        "native_ms": timing.candidate_s * 1e3,
        "speedup": timing.speedup,
        "spread": timing.spread,
        "embedding_cosine": cosine,
        **energy_columns(counter, run_reference, run_plan),
    }


def _embedding(net: nn.Module, batch: Inputs) -> Tensor:
    return cast(SentimentNet, net).embed(**cast(dict[str, Tensor], batch))


def _logits(model: SwitchableModel, name: str, parts: Sequence[Inputs]) -> Tensor:
    return model.logits(parts, PrecisionPlan.uniform(model.layer_names, name))
