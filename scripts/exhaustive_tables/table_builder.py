"""A table of all plans of a network: its groups' profile, and what every plan loses on two splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import wattbit
from envs.grouping import Groups, group_profile, layer_plan
from envs.plan_table import PlanTable, energies_j
from pipeline.energy_source import CostFactory
from pipeline.preparation import build_workload
from pipeline.settings import compose_training
from scripts.exhaustive_tables.plan_counts import PlanCounter, PlanCounts
from scripts.exhaustive_tables.table_recipes import PRECISIONS, RECIPES
from wattbit.errors import ConfigError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches, select
from wattbit.profile import ModelProfile
from wattbit.profiling.profiler import divergence, measure_profile
from wattbit.profiling.sensitivity import Sensitivity
from wattbit.storage.fingerprint import model_fingerprint
from workloads.workload import Split, Workload

_MOST_SAMPLES = 65_535
"""Tables count in 16 bits."""


def build_table(
    table: str, overrides: Sequence[str], samples: Mapping[str, int], batch_size: int, keep: Path
) -> PlanTable:
    """Run every plan.

    Args:
        table: A name in `RECIPES`.
        overrides: Settings of train.py.
        samples: How many of ``search`` and of ``test`` are counted on, the first ones.
        batch_size: Samples that are run together.
        keep: Folder of the counts of each batch, from which an interrupted run goes on.

    Raises:
        WattbitError: If the workload cannot be loaded, or a split has too few samples.
    """
    if max(samples.values()) > _MOST_SAMPLES:
        raise ConfigError(
            f"{max(samples.values())} samples asked for; a table counts {_MOST_SAMPLES} at most"
        )
    recipe = RECIPES[table]
    settings = compose_training([f"workload={recipe.workload}", "energy=modelled", *overrides])
    print(settings.energy.note)
    workload = build_workload(settings.workload)
    print(f"Workload {workload.name}: {workload.description}.")
    parts = {name: workload.first(name, count) for name, count in samples.items()}
    calibrate = workload.splits["calibrate"]
    # Emulated everywhere: the same table on every machine, and no kernel depends on its neighbours.
    example = select(calibrate.inputs, slice(0, 2))
    with SwitchableModel(workload.model, example, PRECISIONS, native=False) as model:
        model.calibrate(batches(calibrate.inputs, batch_size))
        profile = group_profile(
            _layer_profile(model, settings.energy.costs, calibrate, batch_size),
            recipe.groups,
            _sensitivities(model, recipe.groups, calibrate, batch_size),
        )
        counter = PlanCounter(model, recipe.groups, PRECISIONS, keep)
        counts = {name: counter.count(split, batch_size, _progress(name)) for name, split in parts.items()}
    search, held_out = counts["search"], counts["test"]
    return PlanTable(
        profile=profile,
        energy_j=energies_j(profile),
        search_reference_only=search.reference_only.astype(np.uint16),
        search_plan_only=search.plan_only.astype(np.uint16),
        search_divergence=(search.divergence / int(search.samples)).astype(np.float32),
        held_out_reference_only=held_out.reference_only.astype(np.uint16),
        held_out_plan_only=held_out.plan_only.astype(np.uint16),
        search_samples=int(search.samples),
        held_out_samples=int(held_out.samples),
        about=_about(table, workload, recipe.groups, settings.seed, {"search": search, "held_out": held_out}),
    )


def _layer_profile(
    model: SwitchableModel, make_costs: CostFactory, split: Split, batch_size: int
) -> ModelProfile:
    """The profile of the single layers, without the precision of the unmodified model."""
    cost = make_costs(model, split)
    profile = measure_profile(model, split.inputs, cost, batch_size=batch_size)
    layers = [
        replace(layer, costs={name: layer.costs[name] for name in PRECISIONS if name in layer.costs})
        for layer in profile.layers
    ]
    lacking = [name for name in PRECISIONS if any(name not in layer.costs for layer in layers)]
    if lacking:
        raise ConfigError(f"device {cost.device!r} cannot run {lacking[0]!r}; take another energy/device")
    return replace(profile, layers=tuple(layers), precisions=PRECISIONS)


def _sensitivities(
    model: SwitchableModel, groups: Groups, split: Split, batch_size: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean and standard error of the divergence when one group alone leaves the reference, nats."""
    parts = list(batches(split.inputs, batch_size))
    reference = dict.fromkeys(groups, PRECISIONS[0])
    log_reference = F.log_softmax(model.logits(parts, layer_plan(groups, reference)), 1)
    found = {}
    for group in groups:
        for name in PRECISIONS[1:]:
            logits = model.logits(parts, layer_plan(groups, {**reference, group: name}))
            moved = Sensitivity.of(divergence(log_reference, logits))
            found[group, name] = (moved.mean, moved.std_error)
    return found


def _about(
    table: str, workload: Workload, groups: Groups, seed: int, counts: Mapping[str, PlanCounts]
) -> dict[str, Any]:
    return {
        "table": table,
        "workload": workload.name,
        "model": workload.description,
        "model_fingerprint": model_fingerprint(workload.model),
        "seed": seed,
        "groups": {name: list(layers) for name, layers in groups.items()},
        "splits": {"sensitivities": "calibrate", "search": "search", "held_out": "test"},
        "reference_accuracy": {
            part: float(found.reference_right / found.samples) for part, found in counts.items()
        },
        "versions": {"wattbit": wattbit.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _progress(part: str) -> Callable[[int, int], None]:
    """Says how far the counting is, and how long it will take."""
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        left_min = (time.monotonic() - started) / done * (total - done) / 60
        print(f"{part}: {done} of {total} samples, about {left_min:.0f} min left", flush=True)

    return report
