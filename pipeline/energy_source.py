"""Where a run's figures of energy come from: what the options of ``conf/energy`` name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wattbit.energy.auto import choose_meter, counters
from wattbit.energy.device_model import DeviceModel
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.energy.measurement_protocol import MeasurementProtocol
from wattbit.energy.meter import EnergyMeter
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import select
from wattbit.profiling.layer_costs import MeteredCost, ModelledCost
from wattbit.profiling.profiler import CostModel
from workloads.workload import Split

CostFactory = Callable[[SwitchableModel, Split], CostModel]
"""Builds the cost model of a calibrated model; the split gives a meter its samples."""

METERING_SAMPLES = 64
"""Samples in the batch that a meter measures."""


@dataclass(frozen=True, slots=True)
class EnergySource:
    """A source of energy figures.

    Attributes:
        note: One sentence that says which it is, and why.
        costs: Builds the cost model.
    """

    note: str
    costs: CostFactory


def auto_energy(
    device: Mapping[str, Any], protocol: MeasurementProtocol, cache_dir: str | None = None
) -> EnergySource:
    """A counter of what the model runs on, the CPU, if it can be read; else the device of a table.

    Args:
        device: The table, see `DeviceModel.from_table`.
        protocol: How a counter measures.
        cache_dir: Where measurements are kept; None to make them every time.
    """
    source, note = choose_meter(counters(), DeviceModel.from_table(device))
    if isinstance(source, DeviceModel):
        return EnergySource(note, partial(_modelled_cost, source))
    return EnergySource(note, partial(_metered_cost, source, protocol, _cache(cache_dir, None)))


def modelled_energy(device: Mapping[str, Any]) -> EnergySource:
    """The device of a table, see `DeviceModel.from_table`."""
    model = DeviceModel.from_table(device)
    return EnergySource(f"Energy is modelled for {model.device}.", partial(_modelled_cost, model))


def metered_energy(
    meter: partial[EnergyMeter], protocol: MeasurementProtocol, cache_dir: str | None = None
) -> EnergySource:
    """A meter.

    Args:
        meter: Builds it; its arguments are part of what a measurement depends on.
        protocol: How it measures.
        cache_dir: Where measurements are kept; None to make them every time.

    Raises:
        MeterError: If the meter cannot measure here.
    """
    made = meter()
    cache = _cache(cache_dir, meter.keywords)
    return EnergySource(
        f"Energy is {made.provenance} on {made.device}.", partial(_metered_cost, made, protocol, cache)
    )


def _modelled_cost(device: DeviceModel, model: SwitchableModel, split: Split) -> CostModel:
    # All weights share the device's memory, so their size together decides where they lie.
    weight_bytes = 4 * sum(shape.weight_elements for shape in model.shapes)
    return ModelledCost(replace(device, resident_weight_bytes=weight_bytes), model.shapes)


def _metered_cost(
    meter: EnergyMeter,
    protocol: MeasurementProtocol,
    cache: MeasurementCache | None,
    model: SwitchableModel,
    split: Split,
) -> CostModel:
    batch = select(split.inputs, slice(0, METERING_SAMPLES))
    return MeteredCost(meter, model, batch, protocol, cache=cache)


def _cache(folder: str | None, meter_settings: Mapping[str, Any] | None) -> MeasurementCache | None:
    if folder is None:
        return None
    return MeasurementCache(Path(folder) / "measurements.json", {"settings": meter_settings})
