"""Plan tables: what is written is read, and what is damaged is refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_table import ROWS, make_table, plans

from envs.plan_table import TABLES, PlanTable, energies_j, table_names, table_path
from wattbit.errors import DataError

ARRAYS = [f.name for f in fields(PlanTable) if "NDArray" in str(f.type)]


def rewritten(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A table of which ``change`` has changed the arrays or the header."""
    with np.load(io.BytesIO(make_table().to_bytes())) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    change(arrays, header)
    if "header" in arrays:
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        PlanTable.read(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "scripts.exhaustive" in message
    return message


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    table = make_table()
    path = tmp_path / "table.npz"
    path.write_bytes(table.to_bytes())
    again = PlanTable.read(path)
    assert len(again) == ROWS
    assert again.profile == table.profile
    assert (again.search_samples, again.held_out_samples, again.about) == (
        table.search_samples, table.held_out_samples, table.about,
    )  # fmt: skip
    for name in ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(table, name))


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_the_plans_with_the_last_group_varied_first(seed: int) -> None:
    table = make_table(seed)
    expected = [table.profile.plan_energy_j(plan) for plan in plans(table)]
    assert np.array_equal(energies_j(table.profile), expected)
    with_other = replace(table.profile, other_energy_j=1e-6)
    assert energies_j(with_other)[0] == pytest.approx(with_other.reference_energy_j)


def test_a_table_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no table 'nope'; give the path of an \.npz file, or one of"):
        table_path("nope")
    with pytest.raises(DataError, match="no table"):
        PlanTable.read(tmp_path / "nope.npz")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_file_that_is_cut_or_flipped_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    table = make_table()
    content = bytearray(table.to_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("tables") / "damaged.npz"
    path.write_bytes(bytes(content))
    with contextlib.suppress(DataError):
        again = PlanTable.read(path)
        assert all(np.array_equal(getattr(again, name), getattr(table, name)) for name in ARRAYS)


@pytest.mark.parametrize("name", ["header", *ARRAYS])
def test_a_table_that_lacks_an_array_is_refused(tmp_path: Path, name: str) -> None:
    assert name in refusal(tmp_path, rewritten(lambda arrays, header: arrays.pop(name)))


def test_figures_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    def set_array(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
        return lambda arrays, header: arrays.update({name: value(arrays[name])})

    def set_header(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
        return lambda arrays, header: header.update({name: value})

    for change, reason in (
        (set_header("schema", 2), "schema is 2"),
        (set_header("search_samples", 0), "number of samples is 0"),
        (set_header("search_samples", 3), "more than the 3 search samples"),
        (set_header("held_out_samples", True), "number of samples is True"),
        (set_header("profile", {}), "not a profile"),
        (set_array("search_plan_only", lambda a: a[:-1]), "search_plan_only is uint16"),
        (set_array("held_out_plan_only", lambda a: a.astype(np.int64)), "held_out_plan_only is int64"),
        (set_array("search_divergence", lambda a: a * np.float32("nan")), "not finite"),
        (set_array("search_divergence", lambda a: -a), "negative"),
        (set_array("energy_j", lambda a: 2 * a), "not those of the profile"),
        (set_array("search_divergence", lambda a: np.array([None])), "allow_pickle"),
    ):
        assert reason in refusal(tmp_path, rewritten(change)).replace("Object arrays cannot", "allow_pickle")


def test_every_table_that_comes_with_the_checkout_is_sound_and_small() -> None:
    for name in table_names():
        table = PlanTable.read(name)
        assert table_path(name).stat().st_size <= 5e6
        assert len(table) == 65_536
        assert table.search_samples >= 768
        assert table.held_out_samples >= 2000
        assert table.profile.provenance == "modelled"
        assert table.search_reference_only[0] == table.held_out_plan_only[0] == 0
        assert table.search_divergence[0] == 0.0
    assert TABLES.name == "tables"
