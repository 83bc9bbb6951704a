"""Conventions of the tests: short files, and promises that are asked for by public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.glob("*.py"))
MOST_LINES = 400
# What these are about is no module: the checkout as a whole, its settings, its pages.
OF_THE_WHOLE = {"configs", "conventions", "device_tables", "docs", "guide", "house", "imports", "interrupts"}
# Methods of torch's own modules that users' code replaces, too.
OF_TORCH = {"_conv_forward", "_call_impl", "_compiled_call_impl"}
BY_NAME = {"setattr", "getattr", "hasattr", "delattr"}


@cache
def module_names() -> frozenset[str]:
    """The names of all modules and packages of the repository."""
    folders = [folder for folder in TESTS.parent.iterdir() if (folder / "__init__.py").exists()]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return frozenset(file.parent.name if file.stem == "__init__" else file.stem for file in files)


def is_private(dotted: str) -> bool:
    """True for ``_x`` and ``a._x``; not for ``__init__``, nor for ``_target_``, which is Hydra's."""
    return any(part.startswith("_") and not part.endswith("_") for part in dotted.split("."))


def is_ours(module: str | None) -> bool:
    """True for modules of the repository, helpers of tests included."""
    root = (module or "").partition(".")[0]
    return (TESTS.parent / root).is_dir() or (TESTS / f"{root}.py").exists()


def root_of(node: ast.expr) -> str:
    """The name that a chain of attributes begins with; empty if it begins with something else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def own_names(tree: ast.Module) -> set[str]:
    """Whose private attributes a file may use: its own objects', and those of modules that are not ours."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    return {"self", "cls"} | {name for name in names if not is_ours(name)}


def private_uses(tree: ast.Module) -> Iterator[str]:
    """The private names of something else that are used."""
    allowed = own_names(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and is_ours(node.module):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and root_of(node) not in allowed:
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            texts = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
            names = [text for text in texts if text.partition(".")[0] not in allowed]
        yield from (name for name in names if is_private(name) and name not in OF_TORCH)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_test_file_keeps_one_promise_by_public_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    tree = ast.parse(text)
    assert list(private_uses(tree)) == []
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.startswith("test_")], "share by a module of its own"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from wattbit.plan import _parse", ["wattbit.plan._parse"]),
        ("runtime._model.head", ["_model"]),
        ("make()._model", ["_model"]),
        ("monkeypatch.setattr(packing, '_pack', None)", ["_pack"]),
        ("monkeypatch.setattr('wattbit.packing._pack', None)", ["wattbit.packing._pack"]),
        (
            "from torch.utils import _pytree\nimport os\nos._exit(3)\nself._x\nnode._target_\nplan.__class__",
            [],
        ),
    ],
)
def test_private_names_are_found(code: str, found: list[str]) -> None:
    assert list(private_uses(ast.parse(code))) == found


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("test_")], ids=lambda path: path.stem
)
def test_a_test_file_is_named_after_what_it_tests(path: Path) -> None:
    """A module or package first, then perhaps the promise."""
    words = path.stem.split("_")[1:]
    beginnings = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    assert beginnings & (module_names() | OF_THE_WHOLE)
