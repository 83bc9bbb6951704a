"""Building a table: from a workload to a file that others search on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fashion_mnist_files import contents, write

from envs.plan_table import PlanTable
from envs.tabular import TabularEvaluator
from scripts import exhaustive
from scripts.exhaustive_tables.table_recipes import PRECISIONS, RECIPES, TableRecipe
from wattbit.plan import PrecisionPlan

GROUPS = {
    "front": ("stem", "stage1.conv1", "stage1.conv2"),
    "middle": ("stage2.conv1", "stage2.conv2", "stage2.shortcut"),
    "back": ("stage3.conv1", "stage3.conv2", "stage3.shortcut", "head"),
}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that build a small table in no time."""
    monkeypatch.setitem(RECIPES, "small", TableRecipe("fashion_mnist", GROUPS))
    write(tmp_path / "data", contents())
    sizes = ["workload.calibrate=20", "workload.search=30", "workload.certify=40", "workload.epochs=1"]
    return [
        *("small", f"workload.data_dir={tmp_path / 'data'}", f"cache_dir={tmp_path / 'cache'}", *sizes),
        *("--search", "30", "--held-out", "50", "--batch", "20"),
        *("--keep", str(tmp_path / "keep"), "--output", str(tmp_path / "small.npz")),
    ]


def test_a_table_holds_every_plan_and_says_what_it_is(tmp_path: Path, arguments: list[str]) -> None:
    exhaustive.main(arguments)
    table = PlanTable.read(tmp_path / "small.npz")
    assert len(table) == 64
    assert table.profile.precisions == PRECISIONS
    assert table.profile.layer_names == tuple(GROUPS)
    assert table.profile.provenance == "modelled"
    assert (table.search_samples, table.held_out_samples) == (30, 50)
    assert table.about["groups"] == {name: list(layers) for name, layers in GROUPS.items()}
    assert table.about["splits"] == {"sensitivities": "calibrate", "search": "search", "held_out": "test"}
    assert set(table.about["versions"]) == {"wattbit", "torch", "numpy"}
    assert 0 <= table.about["reference_accuracy"]["held_out"] <= 1
    assert table.search_divergence[0] == table.search_reference_only[0] == table.held_out_plan_only[0] == 0
    for layer in table.profile.layers:
        assert layer.costs["fp16"].sensitivity == 0.0
        assert layer.costs["int3"].sensitivity > layer.costs["int8"].sensitivity > 0.0
        assert layer.costs["int3"].energy_j < layer.costs["int8"].energy_j < layer.costs["fp16"].energy_j
    cheapest = PrecisionPlan.uniform(tuple(GROUPS), "int3")
    assert TabularEvaluator(table).optimum(100.0).energy_j <= table.profile.plan_energy_j(cheapest)


def test_a_second_build_finds_what_the_first_one_counted(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exhaustive.main(arguments)
    first = PlanTable.read(tmp_path / "small.npz")
    kept = sorted(path.name for path in (tmp_path / "keep").rglob("*.npz"))
    assert len(kept) == 5

    def refuse(*_: object) -> None:
        raise RuntimeError("counted again")

    monkeypatch.setattr("scripts.exhaustive_tables.plan_tree.PlanTree.logits", refuse)
    exhaustive.main(arguments)
    again = PlanTable.read(tmp_path / "small.npz")
    assert np.array_equal(first.search_divergence, again.search_divergence)
    with pytest.raises(RuntimeError, match="counted again"):
        exhaustive.main([*arguments, "seed=1"])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            ["--search", "31"],
            "31 samples asked for, split 'search' has 30; ask for at least 1 and at most 30",
        ),
        (["--held-out", "0"], "0 samples asked for, split 'test' has 60"),
        (["--batch", "none"], "invalid int value: 'none'"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(
    arguments: list[str], more: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        exhaustive.main([*arguments, *more])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_an_unknown_table_is_answered_with_those_that_can_be_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        exhaustive.main(["nope"])
    assert f"choose from {', '.join(RECIPES)}" in capsys.readouterr().err


def test_an_unknown_setting_is_answered_with_those_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        exhaustive.main(["small", "cache_dr=3"])
    assert "cache_dr: no such setting; choose from cache_dir" in capsys.readouterr().err
