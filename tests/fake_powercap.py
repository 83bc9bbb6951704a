"""A fake of ``/sys/class/powercap`` and ``/proc/stat``: counters that move when told, and wrap around."""

from __future__ import annotations

from pathlib import Path

RANGE_UJ = 262_143_328_850
"""What many machines have: 2^32 - 1 units of 61 microjoules."""


class FakePowercap:
    """Power zones in a folder.

    Args:
        root: An empty folder.
        zones: Zones by the name of their folder (``intel-rapl:0``), with the kernel's name for them
            (``package-0``).
        range_uj: After this every counter begins again.
    """

    def __init__(self, root: Path, zones: dict[str, str], range_uj: int = RANGE_UJ) -> None:
        self.root = root
        self.range_uj = range_uj
        self.denied: set[Path] = set()
        self._energy_uj = dict.fromkeys(zones, 1_000_000)
        for folder, name in zones.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(f"{name}\n", encoding="utf-8")
            (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n", encoding="utf-8")
            self.set(folder, 1_000_000)

    def set(self, folder: str, energy_uj: int) -> None:
        """Set a counter."""
        self._energy_uj[folder] = energy_uj
        self.counter(folder).write_text(f"{energy_uj}\n", encoding="utf-8")

    def spend(self, joules: float, *folders: str) -> None:
        """Count joules in some zones (none named: in all); counters begin again where they must."""
        for folder in folders or tuple(self._energy_uj):
            self.set(folder, (self._energy_uj[folder] + round(joules * 1e6)) % self.range_uj)

    def counter(self, folder: str) -> Path:
        """A zone's counter."""
        return self.root / folder / "energy_uj"

    def deny(self, folder: str) -> None:
        """Let nobody read a counter, whoever runs the test."""
        self.denied.add(self.counter(folder))

    def read(self, path: Path) -> str:
        """Read a file as the kernel would let an ordinary user."""
        if path in self.denied:
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_text(encoding="utf-8")


class FakeProcStat:
    """The machine's and this process's CPU time.

    Args:
        path: Where ``/proc/stat`` is to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own_s = 0.0
        self._busy_s = 100.0
        self.work(0.0, 0.0)

    def work(self, own_s: float, foreign_s: float = 0.0) -> None:
        """This process and others work."""
        self.own_s += own_s
        self._busy_s += own_s + foreign_s
        ticks = round(self._busy_s * 100)
        text = f"cpu  {ticks} 0 0 999999 0 0 0 0 0 0\ncpu0 {ticks} 0 0 999999 0 0 0 0 0 0\n"
        self.path.write_text(text, encoding="utf-8")

    def own(self) -> float:
        """CPU-seconds of this process."""
        return self.own_s
