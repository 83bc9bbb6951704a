"""What the documentation names is there: files, folders, modules; the API reference has every public name."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from checkout import ROOT

import wattbit
from pipeline.cli import check_overrides

PACKAGES = ("wattbit", "envs", "agents", "workloads", "report", "pipeline", "scripts")
# Not the changelog, which names what is gone.
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "CHANGELOG.md"})
SOURCES = sorted([
    *(path for folder in (*PACKAGES, "conf") for path in (ROOT / folder).rglob("*.*")),
    *ROOT.glob("*.py"),
])  # fmt: skip

_FILE = re.compile(r"(?<![\w./*<-])[\w.-]+(?:/[\w.-]+)*\.(?:py|npz|cff)\b(?!\.)")
_FOLDER = re.compile(rf"`((?:{'|'.join((*PACKAGES, 'conf', 'docs', 'tests'))})/(?:[\w.-]+/?)*)(?<!-v0)`")
_DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
# Written by readers of the guide, by a run, by an agent, or one day.
_ELSEWHERE = {
    "workloads/digits_mlp.py",
    "workloads.digits_mlp.load",
    "conf/workload/digits_mlp.yaml",
    "policy.npz",
    "report.html",
    "report.py",
    "wattbit/engines/",
}


@cache
def is_importable(dotted: str) -> bool:
    """True if ``dotted`` is a module, or an attribute of one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def missing(text: str) -> set[str]:
    """What ``text`` names that is not there; a file may be named without its folder."""
    file_names = {path.name for path in SOURCES} | {path.name for path in ROOT.iterdir()}
    files = {name for name in _FILE.findall(text) if name not in file_names and not (ROOT / name).is_file()}
    folders = {name for name in _FOLDER.findall(text) if not (ROOT / name).exists()}
    modules = {name for name in _DOTTED.findall(text) if not is_importable(name)}
    return {name for name in files | folders | modules if "NAME" not in name} - _ELSEWHERE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing(text) == set()
    links = re.findall(r"\]\(([^)#:\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_what_docstrings_comments_and_settings_name_is_there() -> None:
    for path in SOURCES:
        if path.suffix in (".py", ".yaml"):
            quoted = re.findall(r"`+[^`\n]+`+|^ *#.*", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert missing("\n".join(quoted)) == set(), path


def test_a_name_that_is_gone_is_found() -> None:
    text = (
        "`wattbit/gone/` and `wattbit/gone.py`, wattbit.plan.Gone; `wattbit/` and wattbit.plan.PrecisionPlan."
    )
    assert missing(text) == {"wattbit/gone/", "wattbit/gone.py", "wattbit.plan.Gone"}


def test_every_public_name_is_in_the_api_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)}
    assert set(wattbit.__all__) <= documented


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_every_setting_that_the_guide_lists_is_there() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    settings = re.findall(r"^\| `(energy\.[\w.]+)` \|", guide, re.MULTILINE)
    assert len(settings) > 5
    check_overrides("train", ["energy=rapl", *(f"{name}=null" for name in settings)])
