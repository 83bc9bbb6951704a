"""The rules of the house that no linter knows: no circle, one home a name, small files, one version."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import yaml
from checkout import ROOT

import wattbit

PACKAGES = ("wattbit", "envs", "agents", "workloads", "report", "pipeline", "scripts")
MAX_LINES = 320
MAX_MODULES_OF_THE_VOCABULARY = 12
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ENTRY_POINTS = [ROOT / "train.py", ROOT / "evaluate.py"]


def homes_of_several(names: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    """The names that have more than one home, with their homes."""
    homes = defaultdict(set)
    for name, path in names:
        homes[name].add(str(path.relative_to(ROOT)))
    return {name: sorted(paths) for name, paths in homes.items() if len(paths) > 1}


def classes_and_aliases(path: Path) -> Iterator[tuple[str, Path]]:
    """The classes of a file, and its aliases of types: what is assigned to a name such as ``Floats``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name, path
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9]*[a-z]\w*", target.id):
                    yield target.id, path


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > len(FILES) - 10
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the circle


def test_no_file_name_twice() -> None:
    files = [path for path in FILES + ENTRY_POINTS if not path.stem.startswith("__")]
    assert not homes_of_several((path.name, path) for path in files)


def test_no_class_and_no_alias_of_a_type_twice() -> None:
    assert not homes_of_several(pair for path in FILES + ENTRY_POINTS for pair in classes_and_aliases(path))


def test_the_vocabulary_of_the_deployable_stays_small() -> None:
    assert len(list((ROOT / "wattbit").glob("*.py"))) <= MAX_MODULES_OF_THE_VOCABULARY


def test_every_file_directly_in_scripts_is_a_command() -> None:
    for path in (ROOT / "scripts").glob("[!_]*.py"):
        source = path.read_text(encoding="utf-8")
        assert re.search(r"^def main\(", source, re.MULTILINE), f"{path.name} has no main"
        assert re.search(r'^if __name__ == "__main__":\n(    .*\n)*    .*main\(', source, re.MULTILINE), (
            path.name
        )
        assert f"python -m scripts.{path.stem}" in source, f"{path.name} does not say how it is called"


def test_files_are_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES + ENTRY_POINTS}
    assert {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > MAX_LINES} == {}


def test_the_version_is_said_once_and_cited_alike() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == wattbit.__version__
    assert 'path = "wattbit/__init__.py"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_hosted_check_runs_what_is_run_here() -> None:
    for path in (ROOT / ".github").rglob("*.yml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in steps if "uses" in step)
