"""The kernel's power zones under ``/sys/class/powercap``: finding them by name, and reading their counters.

A machine has one top-level zone per package (``package-0``, ``package-0-die-1``), which counts what its
subzones ``core`` and ``uncore`` count as well; its subzone ``dram`` is counted nowhere else. ``psys`` counts
the whole platform, packages included. The same package may appear a second time under ``intel-rapl-mmio``.
Zones are therefore taken by name and from one place only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattbit.errors import MeterError

ROOT = Path("/sys/class/powercap")

DOMAINS = ("package", "dram", "core", "uncore", "psys")
"""What can be asked for; `choose_zones` says which go together."""

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)*")
_PARTS_OF_PACKAGE = {"core", "uncore"}


def read_text(path: Path) -> str:
    """The content of a file of the kernel's."""
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Zone:
    """One energy counter.

    Attributes:
        name: The kernel's name for it, with its package for subzones: ``package-0``, ``package-0/dram``.
        domain: One of `DOMAINS`.
        counter: The file that holds the energy, microjoules.
        range_uj: The counter begins again at 0 after this, microjoules.
    """

    name: str
    domain: str
    counter: Path
    range_uj: int


def choose_zones(
    domains: Sequence[str], root: Path = ROOT, read: Callable[[Path], str] = read_text
) -> tuple[Zone, ...]:
    """The zones of ``domains``, of all sockets.

    Args:
        domains: From `DOMAINS`. ``dram`` may be missing on the machine if others are asked for as well.
        root: Where the kernel lists its zones.
        read: Reads a file.

    Raises:
        MeterError: If domains do not go together, the machine has none of them, or a counter cannot be read.
    """
    _require_consistent(domains)
    found = _all_zones(root, read)
    if not found:
        raise MeterError(
            f"no RAPL power zone in {root}: load the kernel's module (sudo modprobe intel_rapl_msr); in a "
            "container mount /sys/devices/virtual/powercap; virtual machines have none, choose "
            "energy=estimated or energy=modelled"
        )
    chosen = tuple(zone for zone in found if zone.domain in domains)
    missing = [name for name in domains if all(zone.domain != name for zone in chosen)]
    if not chosen or (missing and missing != ["dram"]):
        names = ", ".join(zone.name for zone in found)
        raise MeterError(f"no RAPL zone {missing[0]!r} on this machine; it has {names}: choose among them")
    for zone in chosen:
        read_uj(zone, read)
    return chosen


def read_uj(zone: Zone, read: Callable[[Path], str] = read_text) -> int:
    """The counter of ``zone`` now, microjoules.

    Raises:
        MeterError: If it may not be read, is gone, or is not a number in its range.
    """
    text = _read(zone.counter, read)
    if not text.isdigit() or int(text) > zone.range_uj:
        raise MeterError(
            f"{zone.counter} holds {text!r:.40}, must be a whole number up to {zone.range_uj}: the kernel's "
            "power zone is broken; choose energy=estimated"
        )
    return int(text)


def _require_consistent(domains: Sequence[str]) -> None:
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown or not domains:
        given = repr(unknown[0]) if unknown else "nothing"
        raise MeterError(f"RAPL domains: {given} given; choose from {', '.join(DOMAINS)}")
    if "psys" in domains and len(set(domains)) > 1:
        raise MeterError(
            "RAPL domain 'psys' counts packages and memory as well; choose it alone, or leave it out"
        )
    if "package" in domains and _PARTS_OF_PACKAGE & set(domains):
        part = sorted(_PARTS_OF_PACKAGE & set(domains))[0]
        raise MeterError(
            f"RAPL domain {part!r} is part of 'package' and would count twice; leave one of them out"
        )


def _all_zones(root: Path, read: Callable[[Path], str]) -> list[Zone]:
    try:
        folders = sorted(path for path in root.iterdir() if _ZONE.fullmatch(path.name))
    except OSError:
        return []
    names = {path.name: _read(path / "name", read) for path in folders}
    zones = []
    for path in folders:
        name = names[path.name]
        domain = "package" if name.startswith("package-") else name
        parent = names.get(path.name.rpartition(":")[0])
        if domain in DOMAINS:
            label = name if parent is None else f"{parent}/{name}"
            zones.append(Zone(label, domain, path / "energy_uj", _range_uj(path, read)))
    return zones


def _range_uj(folder: Path, read: Callable[[Path], str]) -> int:
    path = folder / "max_energy_range_uj"
    text = _read(path, read)
    if not text.isdigit() or int(text) == 0:
        raise MeterError(
            f"{path} holds {text!r:.40}, must be a whole number above 0: where the counter wraps is unknown; "
            "choose energy=estimated"
        )
    return int(text)


def _read(path: Path, read: Callable[[Path], str]) -> str:
    try:
        return read(path).strip()
    except PermissionError:
        raise MeterError(
            f"{path} may be read by root alone (since CVE-2020-8694); until the next boot: sudo chmod a+r "
            f'{path}; for good: a udev rule ACTION=="add", SUBSYSTEM=="powercap", RUN+="/bin/chmod a+r '
            '/sys%p/energy_uj"; or give Python the capability CAP_DAC_READ_SEARCH (setcap)'
        ) from None
    except OSError as error:
        raise MeterError(
            f"cannot read {path}: {error.strerror or error}: the power zone is gone; check that the kernel's "
            "module intel_rapl_msr is loaded"
        ) from None
