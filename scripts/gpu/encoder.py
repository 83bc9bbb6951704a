"""A transformer encoder end to end: uniform and mixed plans, repeatability, switching."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.switch_bench import WIDTH, network
from scripts.benchmarks.switch_bench import measure as measure_switches
from scripts.benchmarks.timing import best_s
from scripts.gpu.gpu_measurer import GpuMeasurer
from scripts.gpu.layers import OFFERED
from scripts.gpu.machine import Machine
from scripts.gpu.record import Section
from wattbit.energy.interleaved import compare
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.rejection import RejectionRules
from wattbit.energy.trial import Work, run_window, timed_s
from wattbit.errors import MeterError, one_line
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches
from wattbit.plan import PrecisionPlan
from workloads.sentiment_net import EncoderSize, SentimentNet

CLASSES = 16
TOKENS = 128
BATCH = 64
MIXED = (
    ("int8 attention, bf16 feed-forward", "int8", "bf16"),
    ("bf16 attention, int8 feed-forward", "bf16", "int8"),
    ("bf16 attention, fp8_e4m3 feed-forward", "bf16", "fp8_e4m3"),
    ("fp16 attention, int4_wo feed-forward", "fp16", "int4_wo"),
)
"""(name, precision of the attention's layers, precision of the feed-forward layers)."""
ABBA_PLANS = ("uniform bf16", "uniform int8")


@contextmanager
def attached_encoder(
    device: torch.device, size: EncoderSize | None = None, *, native: bool = True
) -> Iterator[tuple[SwitchableModel, dict[str, Tensor]]]:
    """An encoder like MiniLM-L6 with random weights, attached and calibrated, and a batch for it."""
    size = size or EncoderSize()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SentimentNet(size, CLASSES).to(device).eval()
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (BATCH, 1), generator=generator)
    batch = {
        "input_ids": torch.randint(size.vocabulary, (BATCH, TOKENS), generator=generator).to(device),
        "attention_mask": (torch.arange(TOKENS) < lengths).long().to(device),
    }
    with SwitchableModel(net, {name: x[:2] for name, x in batch.items()}, OFFERED, native=native) as model:
        model.calibrate(batches(batch, BATCH))
        yield model, batch


def plans(model: SwitchableModel) -> list[tuple[str, PrecisionPlan]]:
    """The uniform and mixed plans all of whose encoder layers run natively on this device."""
    uniform = [(f"uniform {name}", name, name) for name in OFFERED]
    found = []
    for title, attention, feed_forward in (*uniform, *MIXED):
        choice = {}
        for index, layer in enumerate(model.layer_names):
            wanted = feed_forward if ".ffn." in layer else attention
            native = model.native_kernel(index, wanted) is not None
            # The head has as many outputs as there are classes, which few operations take.
            choice[layer] = wanted if native or layer != "head" else "fp32"
        plan = PrecisionPlan(choice)
        if all(model.native_kernel(i, plan[layer]) for i, layer in enumerate(model.layer_names)):
            found.append((title, plan))
    return found


@torch.inference_mode()
def parity(section: Section, machine: Machine, size: EncoderSize | None = None) -> None:
    """Native against emulated embeddings and predictions of the same plan."""
    with attached_encoder(machine.device, size) as (model, batch):
        reference = _outputs(model, batch, model.reference_plan)
        found = [(title, plan, *_outputs(model, batch, plan)) for title, plan in plans(model)]
    with attached_encoder(machine.device, size, native=False) as (model, batch):
        for title, plan, embedding, logits in section.within_time(found, 5.0, lambda item: item[0]):
            expected, expected_logits = _outputs(model, batch, plan)
            section.add(
                {
                    "plan": title,
                    "samples": len(logits),
                    "agreement": _agreement(logits, expected_logits),
                    "relative_error": float((embedding - expected).norm() / expected.norm()),
                    "cosine_to_reference": float(F.cosine_similarity(embedding, reference[0]).mean()),
                    "agreement_with_reference": _agreement(logits, reference[1]),
                }
            )


@torch.inference_mode()
def end_to_end(
    section: Section, machine: Machine, measurer: GpuMeasurer, size: EncoderSize | None = None
) -> None:
    """One batch under each plan beside the reference plan: time and energy."""
    with attached_encoder(machine.device, size) as (model, batch):
        chosen = [("reference", model.reference_plan), *plans(model)]
        works = {title: partial(model.run, batch, plan) for title, plan in chosen}
        for title, row in measurer.rotate(works, section.left_s).items():
            section.add({"plan": title, "batch": BATCH, "tokens": TOKENS, **row})


@torch.inference_mode()
def abba(
    section: Section,
    machine: Machine,
    *,
    window_s: float,
    trials: int,
    idle_w: float | None,
    size: EncoderSize | None = None,
) -> None:
    """Some plans once more, with the protocol by which profiles are measured."""
    meter = machine.meter
    if meter is None:
        section.note("energy_problem", machine.meter_problem)
        return
    # Windows are as many runs for both, so that the slower one's take longer.
    seconds_each = 3 * (2 * trials + 1) * window_s
    protocol = MeasurementProtocol(window_s, trials, rules=RejectionRules(attempts=1))
    with attached_encoder(machine.device, size) as (model, batch):
        chosen = [(title, plan) for title, plan in plans(model) if title in ABBA_PLANS]
        reference = partial(model.run, batch, model.reference_plan)
        for title, plan in section.within_time(chosen, seconds_each, lambda item: item[0]):
            found = compare(meter, reference, partial(model.run, batch, plan), protocol, idle_w=idle_w)
            section.add(
                {"plan": title, "provenance": meter.provenance, **asdict(found), "net_ratio": found.net_ratio}
            )


@torch.inference_mode()
def repeatability(
    section: Section, machine: Machine, window_s: float, trials: int = 6, size: EncoderSize | None = None
) -> None:
    """The same two works again and again: how much do energy, time and their ratios scatter?"""
    with attached_encoder(machine.device, size) as (model, batch):
        named = {"reference": model.reference_plan, **dict(plans(model))}
        # Where nothing runs natively, the reference against itself shows the scatter as well.
        title = "uniform bf16" if "uniform bf16" in named else list(named)[-1]
        works = [partial(model.run, batch, plan) for plan in (model.reference_plan, named[title])]
        section.note("works", ["reference", title])
        singles_s = [best_s(work, window_s=0.05, trials=3) for work in works]
        repeats = [math.ceil(window_s / single_s) for single_s in singles_s]
        for trial in section.within_time(range(trials), 2.2 * window_s, str):
            first, second = (
                _one_window(machine, work, runs) for work, runs in zip(works, repeats, strict=True)
            )
            section.add({"trial": trial, "reference": first, "candidate": second})
    section.note("cv", spreads(section.rows))


def spreads(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The coefficient of variation of each quantity over the trials, and of candidate / reference."""
    found = {}
    for quantity in ("energy_j", "seconds"):
        pairs = [(row["reference"].get(quantity), row["candidate"].get(quantity)) for row in rows]
        if len(pairs) < 2 or any(value is None for pair in pairs for value in pair):
            continue
        found[f"reference_{quantity}"] = _cv([before for before, _ in pairs])
        found[f"candidate_{quantity}"] = _cv([after for _, after in pairs])
        found[f"ratio_{quantity}"] = _cv([after / before for before, after in pairs])
    return found


@torch.inference_mode()
def switching(section: Section, machine: Machine) -> None:
    """The time of one switch of 200 layers, and what a call costs on top while attached."""
    net = network().to(machine.device)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0)).to(machine.device)
    with SwitchableModel(net, x, ["bf16", "int8"]) as model:
        model.calibrate([x])
        benchmark = measure_switches(model, x)
    section.note("figures", dict(benchmark.figures))
    for row in benchmark.rows:
        section.add(row)


def _outputs(model: SwitchableModel, batch: dict[str, Tensor], plan: PrecisionPlan) -> tuple[Tensor, Tensor]:
    """Embeddings (batch, width) and logits (batch, classes) under ``plan``."""
    model.switch(plan)
    net = cast(SentimentNet, model.model)
    return net.embed(**batch), net(**batch)


def _agreement(logits: Tensor, expected: Tensor) -> float:
    return float((logits.argmax(1) == expected.argmax(1)).double().mean())


def _one_window(machine: Machine, work: Work, runs: int) -> dict[str, float | str]:
    """Time, and energy where it can be had, of one of ``runs`` runs."""
    problem = machine.meter_problem
    if machine.meter is not None:
        try:
            spent = run_window(machine.meter, work, runs)
            return {"energy_j": spent.energy_j / runs, "seconds": spent.seconds / runs}
        except MeterError as error:
            problem = one_line(error)
    return {"seconds": timed_s(work, runs, time.perf_counter) / runs, "energy_problem": problem}


def _cv(values: Sequence[float]) -> float:
    return statistics.stdev(values) / statistics.fmean(values)
