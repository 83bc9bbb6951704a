"""Energy of NVIDIA GPUs as their own counter has it (``measured``).

Source, in this order: ``nvmlDeviceGetTotalEnergyConsumption`` (millijoules, Volta and later), else instant
power, sampled and integrated. A100 and H100 refresh about every 100 ms and look at power for about a quarter
of the time (Yang, Adamek and Armour, SC 2024, arXiv 2312.02741): a short window says nothing, and a long one
is only right on average over several, begun at random moments.

The figure is the whole board's: memory, fans and idle power included, and of whoever uses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from wattbit.energy.counter import Clocks, CounterWindow, HardwareCounter, Instant, require_plausible
from wattbit.energy.device_sync import synchronize
from wattbit.energy.meter import Energy
from wattbit.energy.nvml_conditions import Conditions, detail, read_conditions
from wattbit.energy.nvml_devices import (
    Gpu,
    NvmlSource,
    as_text,
    find_gpus,
    load_nvml,
    read_energy_mj,
    read_power_mw,
)
from wattbit.energy.nvml_power import PowerSampler
from wattbit.errors import MeterError

T = TypeVar("T")

REFRESH_S = 0.1
"""How often the slowest boards (A100, H100) refresh, seconds."""

_SOURCES = {"counter": "energy counter", "power": "instant power, integrated"}
_LEAST_W = 0.5
_MOST_W = 2000.0
_OVER_LIMIT = 1.5
"""Boards exceed their limit for milliseconds, never by half over a window."""


@dataclass(frozen=True, slots=True)
class _NvmlBegin:
    """What is known when a window opens."""

    conditions: Conditions
    sampler: PowerSampler | None
    counters_mj: tuple[int, ...]
    instant: Instant


class NvmlMeter(HardwareCounter):
    """An `EnergyMeter` for NVIDIA GPUs.

    Queued work is waited for when a window opens and when it closes. Heat, throttling and other compute
    processes are read at both ends into ``detail``, by which the protocol rejects trials.

    Args:
        gpus: The GPUs whose energy is added up: CUDA's numbers, or UUIDs. The default is the GPU that torch
            uses unless told otherwise.
        source: ``counter`` or ``power``; None for the counter where there is one.
        min_window_s: Shortest window to be trusted, seconds.
        sampling_s: Time between samples of power on GPUs without a counter, seconds.
        nvml: The ``pynvml`` module; None to load it.
        clocks: What windows are timed with.
        environ: Where ``CUDA_VISIBLE_DEVICES`` is read.
        wait: Waits for what is queued on the GPUs.

    Raises:
        MeterError: If NVML or a GPU is missing, a GPU is in MIG mode, or it has no source of energy.
    """

    refresh_s = REFRESH_S

    def __init__(
        self,
        gpus: Sequence[int | str] = (0,),
        *,
        source: NvmlSource | None = None,
        min_window_s: float = 5.0,
        sampling_s: float = 0.02,
        nvml: Any = None,
        clocks: Clocks | None = None,
        environ: Mapping[str, str] | None = None,
        wait: Callable[[], None] = synchronize,
    ) -> None:
        super().__init__(clocks, min_window_s=min_window_s, sampling_s=sampling_s)
        if source is not None and source not in get_args(NvmlSource):
            raise MeterError(f"unknown source {source!r}; choose from {', '.join(get_args(NvmlSource))}")
        self._nvml = load_nvml() if nvml is None else nvml
        self._gpus = self._guarded(
            lambda: find_gpus(self._nvml, gpus, source, os.environ if environ is None else environ)
        )
        self._driver = self._guarded(lambda: as_text(self._nvml.nvmlSystemGetDriverVersion()))
        self._counted = tuple(gpu for gpu in self._gpus if gpu.source == "counter")
        self._sampled = tuple(gpu for gpu in self._gpus if gpu.source == "power")
        self._sampling_s = sampling_s
        self._wait = wait

    @property
    def device(self) -> str:
        """The GPUs by name."""
        return "gpu: " + " + ".join(gpu.name for gpu in self._gpus)

    @property
    def driver(self) -> str:
        """Version of NVIDIA's driver."""
        return self._driver

    @property
    def lock_keys(self) -> tuple[str, ...]:
        """The GPUs by UUID."""
        return tuple(f"{gpu.name} {gpu.uuid}" for gpu in self._gpus)

    def covers(self, device: str) -> bool:
        """True for the GPUs whose energy is added up, and for any where CUDA's numbers are not known."""
        numbers = [gpu.cuda_number for gpu in self._gpus]
        return device.startswith("cuda") and (
            None in numbers or int(device.partition(":")[2] or 0) in numbers
        )

    def window(self) -> CounterWindow[_NvmlBegin]:
        """Open a window; it closes, and its result is ready, when the context is left."""
        return CounterWindow(
            self.lock_keys,
            lambda: self._guarded(self._begin),
            lambda begin: self._guarded(lambda: self._end(begin)),
            _abandon,
        )

    def _begin(self) -> _NvmlBegin:
        conditions = read_conditions(self._nvml, self._gpus)
        self._wait()
        # The counters first: should one fail, no thread is left behind.
        counters_mj, instant = self._read_counters_mj(), self._clocks.now()
        sampler = None
        if self._sampled:
            sampler = PowerSampler(self._read_watts, self._sampling_s, self._clocks.clock_ns)
            sampler.start()
        return _NvmlBegin(conditions, sampler, counters_mj, instant)

    def _end(self, begin: _NvmlBegin) -> Energy:
        try:
            self._wait()
            instant = self._clocks.now()
            counters_mj = self._read_counters_mj()
            sampled_j = begin.sampler.stop() if begin.sampler else ()
        except BaseException:
            _abandon(begin)
            raise
        conditions = read_conditions(self._nvml, self._gpus)
        seconds = self._clocks.seconds(begin.instant, instant)
        counted = zip(self._counted, begin.counters_mj, counters_mj, strict=True)
        energies_j = [(gpu, _counted_j(gpu, before, after, seconds)) for gpu, before, after in counted]
        energies_j += zip(self._sampled, sampled_j, strict=True)
        for gpu, energy_j in energies_j:
            most_w = _MOST_W if gpu.limit_w is None else _OVER_LIMIT * gpu.limit_w
            require_plausible(energy_j, seconds, _LEAST_W, most_w, gpu.label)
        return Energy(
            energy_j=sum(energy_j for _, energy_j in energies_j),
            seconds=seconds,
            provenance=self.provenance,
            device=self.device,
            detail=self._detail(energies_j) | detail(begin.conditions, conditions),
        )

    def _detail(self, energies_j: Sequence[tuple[Gpu, float]]) -> dict[str, str | float]:
        """Source and joules of each GPU, and what reading them depends on."""
        figures: dict[str, str | float] = {"driver": self._driver}
        for gpu, energy_j in energies_j:
            figures[f"gpu_{gpu.index}_j"] = energy_j
            figures[f"gpu_{gpu.index}_source"] = f"NVML {_SOURCES[gpu.source]}"
        if self._sampled:
            figures["sampling_s"] = self._sampling_s
        return figures

    def _read_counters_mj(self) -> tuple[int, ...]:
        return tuple(read_energy_mj(self._nvml, gpu.handle) for gpu in self._counted)

    def _read_watts(self) -> tuple[float, ...]:
        return tuple(read_power_mw(self._nvml, gpu.handle) / 1000.0 for gpu in self._sampled)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except self._nvml.NVMLError as error:
            raise MeterError(
                f"NVML failed ({error}): a GPU or its driver is gone; check it with nvidia-smi"
            ) from None


def _counted_j(gpu: Gpu, before_mj: int, after_mj: int, seconds: float) -> float:
    if after_mj < before_mj:
        raise MeterError(
            f"{gpu.label}: the energy counter went back by {before_mj - after_mj} mJ in the window: it was "
            "reset; measure it again"
        )
    if after_mj == before_mj:
        raise MeterError(
            f"{gpu.label}: the energy counter stood still for {seconds:.3g} s: the window is shorter than "
            f"its refresh (about {REFRESH_S:g} s); raise energy.protocol.window_s"
        )
    return (after_mj - before_mj) / 1000.0


def _abandon(begin: _NvmlBegin) -> None:
    if begin.sampler:
        begin.sampler.abandon()
