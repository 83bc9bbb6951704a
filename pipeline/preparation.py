"""What comes before a search or an evaluation: threads, the workload, its switchable model, the profile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from threadpoolctl import threadpool_limits

from pipeline.energy_source import CostFactory
from wattbit.errors import ConfigError, require_at_least
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches, select
from wattbit.profile import ModelProfile
from wattbit.profiling.profiler import CostModel, Progress, measure_profile
from workloads.workload import Workload


def use_threads(threads: int) -> None:
    """Fix the number of threads of torch and of numpy's and scipy's linear algebra.

    For speed on shared cores, where small products on two threads were seen to take eight times as long as
    on one, and for results that repeat.

    Raises:
        ConfigError: If the number is not at least 1.
    """
    require_at_least(1, threads=threads)
    torch.set_num_threads(threads)
    # For libraries and processes that are not loaded yet; then for those that are.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    threadpool_limits(threads)


def build_workload(load: Callable[[], Workload]) -> Workload:
    """Load the workload.

    Raises:
        ConfigError: If something else is loaded.
    """
    workload = load()
    if not isinstance(workload, Workload):
        raise ConfigError(f"the workload is a {type(workload).__name__}; its function must return a Workload")
    return workload


def build_model(workload: Workload, precisions: Sequence[str]) -> SwitchableModel:
    """Attach the workload's model."""
    example = select(workload.splits["calibrate"].inputs, slice(0, 2))
    return SwitchableModel(workload.model, example, precisions)


def profile_model(
    model: SwitchableModel,
    workload: Workload,
    make_costs: CostFactory,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[ModelProfile, CostModel]:
    """Calibrate the attached model and measure its profile, both on ``calibrate``.

    Args:
        model: The workload's model; it is calibrated in place.
        workload: The workload.
        make_costs: Builds the cost model, which is returned beside the profile.
        workers: See `measure_profile`.
        progress: See `measure_profile`.

    Raises:
        ModelError: If the model cannot be calibrated; further as `measure_profile`.
    """
    split, size = workload.splits["calibrate"], workload.batch_size
    model.calibrate(batches(split.inputs, size))
    costs = make_costs(model, split)
    profile = measure_profile(
        model,
        split.inputs,
        costs,
        batch_size=size,
        sensitivity=workload.sensitivity,
        workers=workers,
        progress=progress,
    )
    return profile, costs
