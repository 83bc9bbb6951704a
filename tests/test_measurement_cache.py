"""Measurements are kept by content: found again if nothing changed, and never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattbit.energy.energy_comparison import EnergyComparison
from wattbit.energy.measurement_cache import MeasurementCache
from wattbit.errors import OutputError

FOUND = EnergyComparison(0.5, 0.01, 1e-3, 5e-4, 2e-3, 1e-3, 5, 100, 0.48, 0.52, 0.02, 1, True, 3.5)
PARTS = {"model": "abc", "shape": {"macs": 12}, "window_s": None}


def cache(folder: Path, **context: Any) -> MeasurementCache:
    return MeasurementCache(folder / "sub" / "measurements.json", context)


def test_what_was_put_is_found_again_by_another_process(tmp_path: Path) -> None:
    assert cache(tmp_path).get(PARTS) is None
    cache(tmp_path).put(PARTS, FOUND)
    assert cache(tmp_path).get(PARTS) == FOUND
    assert cache(tmp_path).get(dict(reversed(PARTS.items()))) == FOUND


@pytest.mark.parametrize(
    "changed", [{"model": "abd"}, {"shape": {"macs": 13}}, {"window_s": 5.0}, {"more": 1}]
)
def test_anything_that_differs_is_another_measurement(tmp_path: Path, changed: dict[str, Any]) -> None:
    cache(tmp_path).put(PARTS, FOUND)
    assert cache(tmp_path).get({**PARTS, **changed}) is None


def test_the_context_is_part_of_every_key(tmp_path: Path) -> None:
    cache(tmp_path, torch="2.9").put(PARTS, FOUND)
    assert cache(tmp_path, torch="2.10").get(PARTS) is None
    assert cache(tmp_path, torch="2.9").get(PARTS) == FOUND


def test_two_that_write_keep_each_other_s_measurements(tmp_path: Path) -> None:
    first, second = cache(tmp_path), cache(tmp_path)
    first.put({"layer": 1}, FOUND)
    second.put({"layer": 2}, FOUND)
    assert cache(tmp_path).get({"layer": 1}) == cache(tmp_path).get({"layer": 2}) == FOUND
    assert second.get({"layer": 1}) == FOUND


def test_a_measurement_that_scattered_is_kept_as_one_that_did(tmp_path: Path) -> None:
    cache(tmp_path).put(PARTS, EnergyComparison(0.5, 0.2, 1e-3, 5e-4, 2e-3, 1e-3, 15, 100, reliable=False))
    found = cache(tmp_path).get(PARTS)
    assert found is not None
    assert not found.reliable


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '{"schema": 99, "measurements": {}}', '{"schema": 1}', "\x00", "[" * 100_000],
)
def test_a_damaged_file_is_ignored_with_a_note_and_written_anew(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sub" / "measurements.json"
    path.parent.mkdir()
    path.write_text(text)
    damaged = cache(tmp_path)
    assert damaged.get(PARTS) is None
    assert "is ignored" in caplog.text
    damaged.put(PARTS, FOUND)
    assert cache(tmp_path).get(PARTS) == FOUND


@pytest.mark.parametrize(
    "spoilt",
    [
        {"energy_ratio": 0.0},
        {"energy_ratio": -0.5},
        {"reference_j": "1"},
        {"trials": 2.5},
        {"reliable": 1},
        {"rejected": True},
        {"candidate_s": None},
        {"energy_rel_std": 1e999},
        {"extra": 1.0},
    ],
)
def test_a_damaged_measurement_is_made_again_and_the_others_are_kept(
    tmp_path: Path, spoilt: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    kept = cache(tmp_path)
    kept.put({"layer": 1}, FOUND)
    kept.put({"layer": 2}, FOUND)
    path = tmp_path / "sub" / "measurements.json"
    data = json.loads(path.read_text())
    first, _ = data["measurements"].values()
    first.update(spoilt)
    path.write_text(json.dumps(data))
    again = cache(tmp_path)
    assert [again.get({"layer": number}) for number in (1, 2)].count(FOUND) == 1
    assert "1 of 2 measurements are damaged" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file, not a folder")
    with pytest.raises(OutputError, match="choose another cache_dir"):
        cache(tmp_path).put(PARTS, FOUND)


@given(ratio=st.floats(1e-6, 1e6), joules=st.floats(1e-12, 1e6), trials=st.integers(2, 99))
@settings(deadline=None, max_examples=30)
def test_figures_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, ratio: float, joules: float, trials: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    found = EnergyComparison(ratio, 0.0, joules, ratio * joules, 1.0, 1.0, trials, 3)
    cache(folder).put(PARTS, found)
    assert cache(folder).get(PARTS) == found
