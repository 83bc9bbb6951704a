"""How quantities are written for people."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.formatting import (
    energy_scale,
    format_duration,
    format_energy,
    format_percent,
    format_pp,
    format_short,
    format_time,
)

PREFIXES = {
    "a": 1e-18,
    "f": 1e-15,
    "p": 1e-12,
    "n": 1e-9,
    "\u00b5": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
}


@pytest.mark.parametrize(
    ("energy_j", "text"),
    [
        (1.2e-6, "1.20 \u00b5J"),
        (2.28e-7, "228 nJ"),
        (9.999e-7, "1.00 \u00b5J"),
        (0.0456, "45.6 mJ"),
        (1.0, "1.00 J"),
        (3600.0, "3.60 kJ"),
        (-1.2e-6, "-1.20 \u00b5J"),
        (0.0, "0 J"),
        (None, "unknown"),
    ],
)
def test_energies_have_three_digits_and_an_si_prefix(energy_j: float | None, text: str) -> None:
    assert format_energy(energy_j) == text


@settings(deadline=None, max_examples=300)
@given(st.floats(1e-17, 9e8))
def test_a_written_energy_reads_back_within_half_a_percent(energy_j: float) -> None:
    number, unit = format_energy(energy_j).split(" ")
    assert 1 <= float(number) < 1000
    assert len(number.replace(".", "")) == 3
    assert float(number) * PREFIXES[unit[:-1]] == pytest.approx(energy_j, rel=5.1e-3)


@settings(deadline=None, max_examples=300)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_energy_can_be_written(energy_j: float) -> None:
    assert format_energy(energy_j).endswith("J")
    scale, unit = energy_scale(energy_j)
    assert scale > 0
    assert unit.endswith("J")


def test_savings_drops_and_times_are_written_with_their_units() -> None:
    assert format_percent(0.8123) == "81.2 %"
    assert format_percent(None) == "unknown"
    assert format_pp(-0.001) == "0.00"
    assert format_time(0.01) == "10.0 \u00b5s"
    assert [format_duration(s) for s in (12.34, 245, 7380, None)] == [
        "12.3 s",
        "4 min 05 s",
        "2 h 03 min",
        "unknown",
    ]
    assert [format_short(v) for v in (0, 0.0123, 3.2e-5, 1234)] == ["0", "0.012", "3e-5", "1e3"]
