"""From settings to objects: the only place besides the entry points that knows configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from threadpoolctl import threadpool_limits

from wattbit.energy.auto import choose_meter, counters
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.meter import EnergyMeter
from wattbit.errors import ConfigError, WattbitError
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches, select
from wattbit.profile import ModelProfile
from wattbit.profiling.layer_costs import MeteredCost, ModelledCost
from wattbit.profiling.profiler import CostModel, Progress, measure_profile
from workloads.workload import Split, Workload

METERING_SAMPLES = 64
"""Samples in the batch that a meter measures."""


def build(node: DictConfig, **more: Any) -> Any:
    """Instantiate ``node``; an error raised on purpose inside comes out as it was raised.

    Raises:
        ConfigError: If the settings do not fit the constructor.
    """
    try:
        return instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, WattbitError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigError(f"{node.get('_target_')}: {error.__cause__ or error}; check its settings") from None


def use_threads(threads: int) -> None:
    """Fix the number of threads of torch and of numpy's and scipy's linear algebra.

    For speed on shared cores, where small products on two threads were seen to take eight times as long as
    on one, and for results that repeat.

    Raises:
        ConfigError: If the number is not at least 1.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, must be at least 1")
    torch.set_num_threads(threads)
    # For libraries and processes that are not loaded yet; then for those that are.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    threadpool_limits(threads)


def build_workload(node: DictConfig) -> Workload:
    """Load the workload."""
    workload = build(node)
    if not isinstance(workload, Workload):
        raise ConfigError(f"{node._target_} returned {type(workload).__name__}; it must return a Workload")
    return workload


def build_model(workload: Workload, precisions: list[str]) -> SwitchableModel:
    """Attach the workload's model."""
    example = select(workload.splits["calibrate"].inputs, slice(0, 2))
    return SwitchableModel(workload.model, example, precisions)


CostFactory = Callable[[SwitchableModel, Split], CostModel]
"""Builds the cost model once the model is attached and calibrated."""


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


def build_costs(node: DictConfig, model_device: str = "cpu") -> tuple[CostFactory, str]:
    """The source of energy figures, and one sentence that says which it is and why.

    Args:
        node: The settings.
        model_device: Where the model will run, as torch names it; ``auto`` looks for a counter of that.

    Raises:
        ConfigError: If the settings do not fit.
        MeterError: If the meter that was asked for cannot measure here.
    """
    if node.name == "auto":
        choice = choose_meter(counters(model_device), cast(DeviceModel, build(node.model)))
        source, reason = choice.meter, choice.reason
    elif "model" in node:
        source = cast(DeviceModel, build(node.model))
        reason = f"Energy is modelled for {source.device}."
    else:
        source = cast(EnergyMeter, build(node.meter))
        reason = f"Energy is {source.provenance} on {source.device}."
    if isinstance(source, DeviceModel):
        return _modelled(source), reason
    return _metered(source, node), reason


def _modelled(device: DeviceModel) -> CostFactory:
    def make(model: SwitchableModel, split: Split) -> CostModel:
        # All weights share the device's memory, so their size together decides where they lie.
        weight_bytes = 4 * sum(shape.weight_elements for shape in model.shapes)
        return ModelledCost(replace(device, resident_weight_bytes=weight_bytes), model.shapes)

    return make


def _metered(meter: EnergyMeter, node: DictConfig) -> CostFactory:
    def make(model: SwitchableModel, split: Split) -> CostModel:
        folder = node.get("cache_dir")
        # The meter's own settings are part of what a measurement depends on.
        context = {"settings": plain(node.get("meter"))}
        return MeteredCost(
            meter,
            model,
            select(split.inputs, slice(0, METERING_SAMPLES)),
            window_s=node.get("window_s"),
            trials=node.get("trials"),
            rules=build(node.rules) if "rules" in node else None,
            idle_s=node.get("idle_s", 0.0),
            cache=None if folder is None else MeasurementCache(Path(folder) / "measurements.json", context),
        )

    return make


def plain(node: Any) -> Any:
    """A configuration node as plain dicts and lists, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
