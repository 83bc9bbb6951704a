"""How energies, savings, drops and times are written for people: three digits, SI prefixes, units.

A quantity that is not known is written ``unknown``, never as 0.
"""

from __future__ import annotations

UNKNOWN = "unknown"

_PREFIXES = {
    -6: "a",
    -5: "f",
    -4: "p",
    -3: "n",
    -2: "\N{MICRO SIGN}",
    -1: "m",
    0: "",
    1: "k",
    2: "M",
    3: "G",
    4: "T",
}


def format_si(value: float, unit: str) -> str:
    """Write ``value`` with three digits and the SI prefix that leaves one to three digits before the point.

    From atto to tera; beyond that the outermost prefix stays and the number grows or shrinks.
    """
    if value == 0:
        return f"0 {unit}"
    # Rounding comes first, so that 999.9 n is 1.00 µ and not 1000 n.
    digits, exponent = f"{value:.2e}".split("e")
    power = _power(value)
    shift = int(exponent) - 3 * power
    return f"{float(f'{digits}e{shift}'):.{max(0, 2 - shift)}f} {_PREFIXES[power]}{unit}"


def format_energy(energy_j: float | None) -> str:
    """Write joules: ``1.2e-6`` is ``1.20 µJ``."""
    return UNKNOWN if energy_j is None else format_si(energy_j, "J")


def format_joules(energy_j: float | None, provenance: str) -> str:
    """Write joules with their provenance: ``1.20 µJ modelled``."""
    return UNKNOWN if energy_j is None else f"{format_energy(energy_j)} {provenance}"


def energy_scale(energy_j: float) -> tuple[float, str]:
    """The factor and the unit that write energies up to ``energy_j`` on an axis: ``(1e9, "nJ")``."""
    power = _power(energy_j)
    return 1000.0**-power, f"{_PREFIXES[power]}J"


def format_time(milliseconds: float | None) -> str:
    """Write a time given in milliseconds: ``0.01`` is ``10.0 µs``."""
    return UNKNOWN if milliseconds is None else format_si(milliseconds / 1e3, "s")


def format_duration(seconds: float | None) -> str:
    """Write how long something took: ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float | None) -> str:
    """Write a size in bytes with a decimal prefix: ``12 300`` is ``12.3 kB``."""
    if size is None:
        return UNKNOWN
    return f"{size:.0f} B" if abs(size) < 1000 else format_si(size, "B")


def format_percent(share: float | None) -> str:
    """Write a share as a percentage: ``0.81`` is ``81.0 %``."""
    return UNKNOWN if share is None else f"{_no_negative_zero(100 * share, 1)} %"


def format_share_interval(interval: tuple[float, float] | None) -> str:
    """Write an interval of shares: ``29.1 % to 32.0 %``; empty where there is none."""
    return "" if interval is None else f"{format_percent(interval[0])} to {format_percent(interval[1])}"


def format_error(error: float | None) -> str:
    """Write a relative error with its sign: ``0.031`` is ``+3.1 %``."""
    return UNKNOWN if error is None else f"{round(100 * error, 1) + 0.0:+.1f} %"


def format_pp(drop_pp: float | None) -> str:
    """Write a drop in percentage points, without the unit: ``0.333`` is ``0.33``."""
    return UNKNOWN if drop_pp is None else _no_negative_zero(drop_pp, 2)


def format_interval(interval_pp: tuple[float, float] | None) -> str:
    """Write an interval of percentage points: ``-0.12 to 0.80``; empty where there is none."""
    return "" if interval_pp is None else f"{format_pp(interval_pp[0])} to {format_pp(interval_pp[1])}"


def format_tolerance(tolerance_pp: float | None) -> str:
    """Write a tolerance: ``0.25 pp``."""
    return "any tolerance" if tolerance_pp is None else f"{tolerance_pp:g} pp"


def format_short(value: float) -> str:
    """Write a number of 0 or more with one or two digits, in few characters: ``0.012``, ``3e-5``, ``0``."""
    if value <= 0 or 0.01 <= value < 1000:
        return f"{value:.2g}" if value > 0 else "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_count(number: float | None) -> str:
    """Write a whole number with its thousands set apart: ``12,300``."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def _power(value: float) -> int:
    """The power of 1000 of the prefix that suits ``value`` once it is rounded to three digits."""
    exponent = int(f"{value:.2e}".split("e")[1])
    return min(max(exponent // 3, min(_PREFIXES)), max(_PREFIXES))


def _no_negative_zero(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
