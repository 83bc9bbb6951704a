"""Energy of CPUs as their own counters have it (``measured``): RAPL, through the kernel's powercap interface.

Intel and AMD since Zen. A counter counts a whole package, with all its cores and whoever runs on them, so the
share of foreign CPU time is kept with every figure, by which the protocol rejects trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattbit.energy.counter import Clocks, CounterWindow, HardwareCounter, Instant, require_plausible
from wattbit.energy.cpu_load import PROC_STAT, CpuTimes, foreign_share, own_cpu_s, read_cpu_times
from wattbit.energy.device_sync import synchronize
from wattbit.energy.meter import Energy
from wattbit.energy.powercap import ROOT, Zone, choose_zones, read_text, read_uj
from wattbit.energy.time_power import cpu_name
from wattbit.errors import MeterError

REFRESH_S = 0.001
"""How often the counters move, seconds (Intel SDM, volume 3, section 15.10)."""

_LEAST_W = 0.001
_J_PER_UJ = 1e-6


@dataclass(frozen=True, slots=True)
class _RaplBegin:
    """What is known when a window opens."""

    cpu: CpuTimes | None
    counters_uj: tuple[int, ...]
    instant: Instant


class RaplMeter(HardwareCounter):
    """An `EnergyMeter` for the CPUs of this machine, all sockets added up.

    Args:
        domains: What to count, from `wattbit.energy.powercap.DOMAINS`; ``dram`` where the machine has it.
        min_window_s: Shortest window to be trusted, seconds.
        max_w: More than any of its zones can draw, watts: more energy is a counter that was reset, and a
            window in which a counter could begin again twice is refused.
        root: Where the kernel lists its power zones.
        proc_stat: Where the kernel counts everybody's CPU time.
        read: Reads a file of the kernel's.
        own_s: CPU-seconds of this process.
        clocks: What windows are timed with.

    Raises:
        MeterError: If the machine has no such zone or it may not be read, naming the remedy.
    """

    refresh_s = REFRESH_S

    def __init__(
        self,
        domains: Sequence[str] = ("package", "dram"),
        *,
        min_window_s: float = 0.3,
        max_w: float = 1000.0,
        root: str | Path = ROOT,
        proc_stat: str | Path = PROC_STAT,
        read: Callable[[Path], str] = read_text,
        own_s: Callable[[], float] = own_cpu_s,
        clocks: Clocks | None = None,
    ) -> None:
        super().__init__(clocks, min_window_s=min_window_s, max_w=max_w)
        self._zones = choose_zones(domains, Path(root), read)
        self._max_w = max_w
        self._proc_stat = Path(proc_stat)
        self._read = read
        self._own_s = own_s

    @property
    def device(self) -> str:
        """The CPU by name."""
        return f"cpu: {cpu_name()}"

    @property
    def zones(self) -> tuple[str, ...]:
        """Names of the zones that are added up."""
        return tuple(zone.name for zone in self._zones)

    @property
    def lock_keys(self) -> tuple[str, ...]:
        """This machine's CPUs."""
        return ("the CPU's RAPL counters",)

    def covers(self, device: str) -> bool:
        """True for the CPU."""
        return device == "cpu"

    def window(self) -> CounterWindow[_RaplBegin]:
        """Open a window; it closes, and its result is ready, when the context is left."""
        return CounterWindow(self.lock_keys, self._begin, self._end)

    def _begin(self) -> _RaplBegin:
        synchronize()
        cpu = read_cpu_times(self._proc_stat, self._own_s)
        return _RaplBegin(cpu, self._read_counters_uj(), self._clocks.now())

    def _end(self, begin: _RaplBegin) -> Energy:
        synchronize()
        instant = self._clocks.now()
        counters_uj = self._read_counters_uj()
        cpu = read_cpu_times(self._proc_stat, self._own_s)
        seconds = self._clocks.seconds(begin.instant, instant)
        energies_j = [
            self._zone_j(zone, before, after, seconds)
            for zone, before, after in zip(self._zones, begin.counters_uj, counters_uj, strict=True)
        ]
        detail: dict[str, str | float] = {
            f"{zone.name}_j": energy_j for zone, energy_j in zip(self._zones, energies_j, strict=True)
        }
        share = foreign_share(begin.cpu, cpu)
        if share is not None:
            detail["foreign_cpu_share"] = share
        return Energy(sum(energies_j), seconds, self.provenance, self.device, detail)

    def _zone_j(self, zone: Zone, before_uj: int, after_uj: int, seconds: float) -> float:
        longest_s = zone.range_uj * _J_PER_UJ / self._max_w
        if seconds > longest_s:
            raise MeterError(
                f"RAPL zone {zone.name}: in {seconds:.3g} s its counter could have begun again more than "
                f"once ({zone.range_uj * _J_PER_UJ:g} J at up to {self._max_w:g} W); keep windows below "
                f"{longest_s:.3g} s, or state a lower energy.meter.max_w"
            )
        energy_j = ((after_uj - before_uj) % zone.range_uj) * _J_PER_UJ
        if energy_j == 0:
            raise MeterError(
                f"RAPL zone {zone.name}: its counter stood still for {seconds:.3g} s; repeat the work more "
                "often, or leave the zone out with energy.meter.domains=[package]"
            )
        require_plausible(energy_j, seconds, _LEAST_W, self._max_w, f"RAPL zone {zone.name}")
        return energy_j

    def _read_counters_uj(self) -> tuple[int, ...]:
        return tuple(read_uj(zone, self._read) for zone in self._zones)
