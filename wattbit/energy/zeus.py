"""Energy of AMD GPUs, Apple silicon and Jetson boards, read by the package ``zeus`` (``measured``).

Zeus (https://ml.energy/zeus) knows the counters of devices that wattbit does not read itself. Its counters of
CPUs are left alone: `wattbit.energy.rapl` reads those.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from wattbit.energy.counter import Clocks, CounterWindow, HardwareCounter, Instant, require_plausible
from wattbit.energy.device_sync import synchronize
from wattbit.energy.meter import Energy
from wattbit.errors import MeterError

T = TypeVar("T")

Part = Literal["gpu", "soc"]
"""``gpu``: discrete GPUs; ``soc``: a system on a chip, with its CPU, GPU and memory."""

REFRESH_S = 0.1
"""How often the slowest of the counters moves, seconds."""

_LEAST_W = 0.001
_MOST_W = 2000.0
_CLOCKS_AGREE_REL = 0.02
_CLOCKS_AGREE_S = 0.05
_JETSON_TOTAL = "total_energy_mj"
_JETSON_PARTS = ("cpu_energy_mj", "gpu_energy_mj")
_APPLE_PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")


@dataclass(frozen=True, slots=True)
class _ZeusBegin:
    """What is known when a window opens."""

    key: str
    instant: Instant


class ZeusMeter(HardwareCounter):
    """An `EnergyMeter` over ``zeus.monitor.ZeusMonitor``.

    Args:
        gpus: GPUs as the framework counts them; None for all that Zeus finds.
        part: What to add up; None where there is only one of them.
        min_window_s: Shortest window to be trusted, seconds.
        monitor: The monitor; None to make one.
        clocks: What windows are timed with.
        wait: Waits for what is queued on the device.

    Raises:
        MeterError: If Zeus is missing or finds nothing to measure, or ``part`` must be chosen.
    """

    refresh_s = REFRESH_S

    def __init__(
        self,
        gpus: Sequence[int] | None = None,
        *,
        part: Part | None = None,
        min_window_s: float = 5.0,
        monitor: Any = None,
        clocks: Clocks | None = None,
        wait: Callable[[], None] = synchronize,
    ) -> None:
        super().__init__(clocks, min_window_s=min_window_s)
        self._monitor = _make_monitor(gpus) if monitor is None else monitor
        self._keys = (f"wattbit-{number}" for number in itertools.count())
        self._wait = wait
        # Some of Zeus's readers run in child processes. A first window, thrown away, waits until they are up,
        # so that their start is in no window that counts.
        probe = self._asked(lambda: self._measure_nothing())
        self._part = _choose_part(probe, part)
        self._device = _device(self._monitor, probe, self._part)

    @property
    def device(self) -> str:
        """What is measured."""
        return self._device

    @property
    def lock_keys(self) -> tuple[str, ...]:
        """What is measured."""
        return (self._device,)

    def covers(self, device: str) -> bool:
        """True for GPUs, or for whatever is on a system on a chip."""
        return self._part == "soc" or device.startswith("cuda")

    def window(self) -> CounterWindow[_ZeusBegin]:
        """Open a window; it closes, and its result is ready, when the context is left."""
        return CounterWindow(self.lock_keys, self._begin, self._end, self._abandon)

    def _begin(self) -> _ZeusBegin:
        key = next(self._keys)
        self._wait()
        self._asked(lambda: self._monitor.begin_window(key, sync_execution=False))
        return _ZeusBegin(key, self._clocks.now())

    def _end(self, begin: _ZeusBegin) -> Energy:
        self._wait()
        instant = self._clocks.now()
        measured = self._asked(lambda: self._end_window(begin.key))
        seconds = self._clocks.seconds(begin.instant, instant)
        if abs(measured.time - seconds) > _CLOCKS_AGREE_S + _CLOCKS_AGREE_REL * seconds:
            raise MeterError(
                f"Zeus counted {measured.time:.3g} s in the window, the monotonic clock {seconds:.3g} s: the "
                "system's clock was set; measure it again"
            )
        energies_j = _gpus_j(measured) if self._part == "gpu" else {"soc": _soc_j(measured.soc_energy)}
        for name, energy_j in energies_j.items():
            if energy_j == 0:
                raise MeterError(
                    f"{name}: Zeus reads 0 J for {seconds:.3g} s: the window is shorter than the counter's "
                    "refresh, or there is no counter; raise energy.protocol.window_s"
                )
            require_plausible(energy_j, seconds, _LEAST_W, _MOST_W, name)
        detail: dict[str, str | float] = {f"{name}_j": energy_j for name, energy_j in energies_j.items()}
        return Energy(sum(energies_j.values()), seconds, self.provenance, self._device, detail)

    def _abandon(self, begin: _ZeusBegin) -> None:
        self._asked(lambda: self._monitor.end_window(begin.key, sync_execution=False, cancel=True))

    def _measure_nothing(self) -> Any:
        key = next(self._keys)
        self._monitor.begin_window(key, sync_execution=False)
        return self._end_window(key)

    def _end_window(self, key: str) -> Any:
        with warnings.catch_warnings():
            # Zeus warns of 0 J; here that is an error.
            warnings.simplefilter("ignore")
            return self._monitor.end_window(key, sync_execution=False)

    def _asked(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            raise MeterError(
                f"Zeus failed ({type(error).__name__}: {error}); check it with python -m zeus.show_env"
            ) from error


def _make_monitor(gpus: Sequence[int] | None) -> Any:
    try:
        module = importlib.import_module("zeus.monitor")
    except ImportError as error:
        raise MeterError(
            f"the package zeus is missing ({error}): pip install 'wattbit[zeus]' (on Apple silicon also "
            "'zeus[apple]'), or choose energy=modelled or energy=estimated"
        ) from None
    try:
        return module.ZeusMonitor(gpu_indices=None if gpus is None else list(gpus), cpu_indices=[])
    except Exception as error:
        raise MeterError(
            f"Zeus cannot start ({type(error).__name__}: {error}); check it with python -m zeus.show_env"
        ) from error


def _choose_part(probe: Any, part: Part | None) -> Part:
    found: list[Part] = []
    if probe.gpu_energy:
        found.append("gpu")
    if probe.soc_energy is not None:
        found.append("soc")
    if not found or (part is not None and part not in found):
        raise MeterError(
            f"Zeus finds {' and '.join(found) or 'no GPU and no system on a chip'} here"
            f"{f', not {part}' if part else ''}; check it with "
            "python -m zeus.show_env, or choose energy=modelled"
        )
    if part is None and len(found) > 1:
        raise MeterError(
            "Zeus finds a GPU and a system on a chip, which may count the same joules; choose one with "
            "energy.meter.part=gpu or energy.meter.part=soc"
        )
    return part or found[0]


def _device(monitor: Any, probe: Any, part: Part) -> str:
    if part == "gpu":
        return "gpu: " + " + ".join(_gpu_name(monitor, index) for index in probe.gpu_energy)
    return f"soc: {type(probe.soc_energy).__name__.removesuffix('Measurement')}"


def _gpu_name(monitor: Any, index: int) -> str:
    try:
        return str(monitor.gpus.get_name(index))
    except Exception:
        return f"GPU {index}"  # older versions have no such method, and a name is not worth failing for


def _gpus_j(measured: Any) -> dict[str, float]:
    return {f"gpu_{index}": float(energy_j) for index, energy_j in measured.gpu_energy.items()}


def _soc_j(soc: Any) -> float:
    """The energy of a whole chip, joules; parts that it does not report are left out.

    Raises:
        MeterError: If it reports none.
    """
    fields = (
        (_JETSON_TOTAL,) if getattr(soc, _JETSON_TOTAL, None) is not None else _JETSON_PARTS + _APPLE_PARTS
    )
    parts_mj = [getattr(soc, name, None) for name in fields]
    known_mj = [float(value) for value in parts_mj if value is not None]
    if not known_mj:
        raise MeterError(
            f"Zeus reports no energy of {type(soc).__name__} that wattbit knows; choose energy=estimated"
        )
    return sum(known_mj) / 1000.0
