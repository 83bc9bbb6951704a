"""Configuration ends at the entry points: whatever they call gets plain values."""

from __future__ import annotations

import ast
from pathlib import Path

from checkout import ROOT

ENTRY_POINTS = {"train.py", "evaluate.py", "pipeline/cli.py", "pipeline/settings.py"}
PACKAGES = ("wattbit", "envs", "agents", "workloads", "report", "pipeline", "scripts")


def imported(path: Path) -> set[str]:
    """The packages that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_hydra_is_imported_by_the_entry_points_alone() -> None:
    files = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix() for path in files if imported(path) & {"hydra", "omegaconf"}}
    assert found == ENTRY_POINTS
