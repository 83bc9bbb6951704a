"""``python -m scripts.exhaustive TABLE``: run every plan of a small network and write the table of outcomes.

A run that is interrupted goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import wattbit
from envs.grouping import Groups, group_profile, layer_plan
from envs.plan_table import TABLES, PlanTable, energies_j
from pipeline.cli import one_line_errors
from pipeline.energy_source import CostFactory
from pipeline.preparation import build_workload, use_threads
from pipeline.settings import compose_training
from scripts import CommandParser
from scripts.exhaustive_tables.plan_counts import PlanCounter, PlanCounts
from scripts.exhaustive_tables.table_recipes import PRECISIONS, RECIPES
from wattbit.errors import ConfigError, DataError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches, select
from wattbit.profile import ModelProfile
from wattbit.profiling.profiler import divergence, measure_profile
from wattbit.profiling.sensitivity import Sensitivity
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.fingerprint import model_fingerprint
from wattbit.storage.writable import require_writable
from workloads.workload import Split, Workload

_MOST_SAMPLES = 65_535
"""Tables count in 16 bits."""


def main(arguments: Sequence[str]) -> None:
    """Build the table named in ``arguments``; a user's mistake ends in one line and exit code 2."""
    parser = CommandParser(
        f"TABLE, TABLE one of {', '.join(RECIPES)}", prog="python -m scripts.exhaustive", description=__doc__
    )
    parser.add_argument("table", metavar="TABLE", help=f"which table: {', '.join(RECIPES)}")
    parser.add_argument("overrides", nargs="*", help="settings of train.py, such as workload.data_dir=FOLDER")
    parser.add_argument("--search", type=int, default=1024, help="search samples, of the search split")
    parser.add_argument("--held-out", type=int, default=2048, help="held-out samples, of the test split")
    parser.add_argument("--batch", type=int, default=512, help="samples that are run together")
    parser.add_argument(
        "--keep", type=Path, default=Path("outputs/exhaustive"), help="folder of unfinished work"
    )
    parser.add_argument("--output", type=Path, help="the table's file; without it, the folder of all tables")
    with one_line_errors():
        options = parser.parse_intermixed_args(arguments)
        if options.table not in RECIPES:
            raise ConfigError(f"no table {options.table!r}; choose from {', '.join(RECIPES)}")
        output = options.output or TABLES / f"{options.table}.npz"
        require_writable(output.absolute().parent, "give another file to --output")
        require_writable(options.keep.absolute(), "give another folder to --keep")
        # Results are then the same bit for bit in every run.
        use_threads(1)
        content = build_table(options).to_bytes()
        write_atomically(output, content)
        print(f"{output}: {len(content) / 2**20:.1f} MiB")


def build_table(options: argparse.Namespace) -> PlanTable:
    """Run every plan.

    Raises:
        WattbitError: If the workload cannot be loaded, or a split has too few samples.
    """
    recipe = RECIPES[options.table]
    settings = compose_training([f"workload={recipe.workload}", "energy=modelled", *options.overrides])
    print(settings.energy.note)
    workload = build_workload(settings.workload)
    print(f"Workload {workload.name}: {workload.description}.")
    parts = {
        "search": _first(workload, "search", options.search),
        "held_out": _first(workload, "test", options.held_out),
    }
    example = select(workload.splits["calibrate"].inputs, slice(0, 2))
    # Emulated everywhere: the same table on every machine, and no kernel depends on its neighbours.
    with SwitchableModel(workload.model, example, PRECISIONS, native=False) as model:
        calibrate = workload.splits["calibrate"]
        model.calibrate(batches(calibrate.inputs, options.batch))
        profile = group_profile(
            _layer_profile(model, settings.energy.costs, calibrate, options.batch),
            recipe.groups,
            _sensitivities(model, recipe.groups, calibrate, options.batch),
        )
        counter = PlanCounter(model, recipe.groups, PRECISIONS, options.keep / options.table)
        counts = {part: counter.count(split, options.batch, _Progress(part)) for part, split in parts.items()}
    return PlanTable(
        profile=profile,
        energy_j=energies_j(profile),
        search_reference_only=_narrow(counts["search"].reference_only),
        search_plan_only=_narrow(counts["search"].plan_only),
        search_divergence=(counts["search"].divergence / len(parts["search"])).astype(np.float32),
        held_out_reference_only=_narrow(counts["held_out"].reference_only),
        held_out_plan_only=_narrow(counts["held_out"].plan_only),
        search_samples=len(parts["search"]),
        held_out_samples=len(parts["held_out"]),
        about=_about(options.table, workload, recipe.groups, settings.seed, counts),
    )


def _first(workload: Workload, name: str, count: int) -> Split:
    split = workload.splits[name]
    if not 1 <= count <= min(len(split), _MOST_SAMPLES):
        raise DataError(
            f"{count} samples asked for, split {name!r} has {len(split)}; ask for at least 1 and at most "
            f"{min(len(split), _MOST_SAMPLES)}, or give workload.{name} more"
        )
    return split.first(count)


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


def _narrow(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    return counts.astype(np.uint16)


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


class _Progress:
    """Says how far the counting is, and how long it will take."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        spent_s = time.monotonic() - self._started
        left_min = spent_s / done * (total - done) / 60
        print(f"{self._part}: {done} of {total} samples, about {left_min:.0f} min left", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
