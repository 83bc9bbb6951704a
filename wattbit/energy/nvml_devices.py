"""Finding NVIDIA GPUs through NVML the way CUDA numbers them, and what NVML can say about each.

CUDA counts the GPUs that ``CUDA_VISIBLE_DEVICES`` lets through, by default the fastest first; NVML counts all
in the order of the PCI bus. A number given here is CUDA's, so that it means what ``cuda:1`` means.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wattbit.errors import MeterError

NvmlSource = Literal["counter", "power"]
"""``counter``: NVML counts millijoules; ``power``: instant power is sampled and integrated."""

_SOURCES = {"counter": "energy counter", "power": "instant power"}
_MIG_ENABLED = 1


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        handle: NVML's handle.
        index: NVML's number of it, as ``nvidia-smi`` shows it.
        cuda_number: CUDA's number of it, as in ``cuda:1``; None if not known.
        uuid: Its UUID.
        name: Its product name.
        source: Where its energy comes from.
        limit_w: The power it is limited to, watts; None if NVML does not say.
    """

    handle: Any
    index: int
    cuda_number: int | None
    uuid: str
    name: str
    source: NvmlSource
    limit_w: float | None

    @property
    def label(self) -> str:
        """For messages: number and name."""
        return f"GPU {self.index} ({self.name})"


def load_nvml() -> Any:
    """The ``pynvml`` module of the package ``nvidia-ml-py``, initialized.

    Raises:
        MeterError: If the package or NVIDIA's driver is missing, naming the remedy.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise MeterError(
            "NVML needs the Python package nvidia-ml-py, which is missing: pip install 'wattbit[nvml]', "
            "or choose energy=modelled or energy=estimated"
        ) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MeterError(
            f"NVML cannot start ({error}): install NVIDIA's driver (nvidia-smi must work), or choose "
            "energy=modelled or energy=estimated"
        ) from None
    return nvml


def find_gpus(
    nvml: Any,
    wanted: Sequence[int | str],
    source: NvmlSource | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Gpu, ...]:
    """The GPUs called ``wanted``.

    Args:
        nvml: The module, initialized.
        wanted: CUDA's numbers, or UUIDs (or their beginnings).
        source: Where energy is to come from; None for the counter where there is one, else for power.
        environ: Where ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are read.

    Raises:
        MeterError: If there is no such GPU, it is named twice, it is in MIG mode or has no source of energy.
    """
    if not wanted:
        raise MeterError("no GPU given to measure, needs at least one; write gpus: [0]")
    every = _all_handles(nvml)
    order = _cuda_order(nvml, every, environ)
    indices = [_resolve(nvml, every, order, name) for name in wanted]
    doubled = [index for index in indices if indices.count(index) > 1]
    if doubled:
        raise MeterError(f"GPU {doubled[0]} is given twice in {list(wanted)}; name each GPU once")
    numbers = {index: number for number, index in enumerate(order or ())}
    return tuple(_describe(nvml, every[index], index, numbers.get(index), source) for index in indices)


def read_energy_mj(nvml: Any, handle: Any) -> int:
    """The energy counter, millijoules since the driver was loaded."""
    return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def read_power_mw(nvml: Any, handle: Any) -> float:
    """Instant power (``NVML_FI_DEV_POWER_INSTANT``), milliwatts.

    Not ``nvmlDeviceGetPowerUsage``, which is an average over a second on Ampere and later.

    Raises:
        NVMLError: If the board has no such reading.
    """
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    return float(value.value.uiVal)


def _all_handles(nvml: Any) -> list[Any]:
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise MeterError("NVML finds 0 GPUs, needs at least one; choose energy=modelled or energy=estimated")
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _cuda_order(nvml: Any, every: Sequence[Any], environ: Mapping[str, str]) -> list[int] | None:
    """NVML's numbers in the order in which CUDA counts; None if that order is CUDA's secret."""
    bus_order = environ.get("CUDA_DEVICE_ORDER", "").upper() == "PCI_BUS_ID"
    countable = bus_order or len({as_text(nvml.nvmlDeviceGetName(handle)) for handle in every}) == 1
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(len(every))) if countable else None
    order: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.upper().startswith("MIG"):
            raise MeterError(
                f"CUDA_VISIBLE_DEVICES names the MIG instance {entry}, which has no energy counter of its "
                "own; name a whole GPU, or choose energy=modelled"
            )
        if entry.isdigit() and not countable:
            return None
        found = _number(entry, len(every)) if entry.isdigit() else _by_uuid(nvml, every, entry)
        if found is None:
            break  # CUDA stops at the first entry that it does not know
        order.append(found)
    return order


def _number(text: str, count: int) -> int | None:
    return int(text) if int(text) < count else None


def _resolve(nvml: Any, every: Sequence[Any], order: Sequence[int] | None, name: int | str) -> int:
    """NVML's number of the GPU called ``name``."""
    if isinstance(name, str) and not name.isdigit():
        found = _by_uuid(nvml, every, name)
        if found is None:
            uuids = ", ".join(as_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every)
            raise MeterError(f"UUID {name!r} fits no GPU, or several; choose from {uuids}")
        return found
    number = int(name)
    if order is None:
        raise MeterError(
            f"GPU {number} could be any of these {len(every)}: they differ, and CUDA counts them in an order "
            "of its own; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID (nvidia-smi -L)"
        )
    if not 0 <= number < len(order):
        raise MeterError(
            f"GPU {number} is not there: CUDA sees {len(order)} of {len(every)} GPUs, counted from 0; choose "
            "another number, or change CUDA_VISIBLE_DEVICES"
        )
    return order[number]


def _by_uuid(nvml: Any, every: Sequence[Any], prefix: str) -> int | None:
    """The only GPU whose UUID begins with ``prefix``, or None."""
    uuids = [as_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every]
    found = [index for index, uuid in enumerate(uuids) if prefix and uuid.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def _describe(nvml: Any, handle: Any, index: int, cuda_number: int | None, source: NvmlSource | None) -> Gpu:
    name = as_text(nvml.nvmlDeviceGetName(handle))
    _refuse_mig(nvml, handle, f"GPU {index} ({name})", index)
    candidates: tuple[NvmlSource, ...] = ("counter", "power") if source is None else (source,)
    usable = [candidate for candidate in candidates if _works(nvml, handle, candidate)]
    if not usable:
        raise MeterError(
            f"GPU {index} ({name}) has no {' and no '.join(_SOURCES[c] for c in candidates)}, as Volta and "
            "later have; choose energy=estimated with energy.meter.clock=wall, or energy=modelled"
        )
    try:
        limit_w: float | None = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000.0
    except nvml.NVMLError:
        limit_w = None
    return Gpu(handle, index, cuda_number, as_text(nvml.nvmlDeviceGetUUID(handle)), name, usable[0], limit_w)


def _refuse_mig(nvml: Any, handle: Any, label: str, index: int) -> None:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return  # a GPU that knows no MIG
    if current == _MIG_ENABLED:
        raise MeterError(
            f"{label} is in MIG mode, where one counter counts the work of all instances; end it with "
            f"nvidia-smi -i {index} -mig 0, or choose energy=modelled"
        )


def _works(nvml: Any, handle: Any, source: NvmlSource) -> bool:
    """True if a reading is there and not 0: a counter that always reads 0 is one that is missing."""
    try:
        return (read_energy_mj if source == "counter" else read_power_mw)(nvml, handle) > 0
    except nvml.NVMLError:
        return False


def as_text(value: str | bytes) -> str:
    """What NVML answers, which older bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else value
