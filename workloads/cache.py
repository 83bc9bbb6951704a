"""Keep trained weights on disk, under the hash of everything that decides them.

A file is found again only by the same key, so nothing has to be invalidated: change a hyper-parameter, the
data or the model's code, and another file is used. Files hold plain tensors: no code in them is ever run.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import logging
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wattbit.errors import ConfigError
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.fingerprint import tensors_sha256
from wattbit.storage.writable import require_writable

_log = logging.getLogger(__name__)


def cached_state_dict(
    cache_dir: str | Path, key_parts: Mapping[str, Any], build: Callable[[], nn.Module]
) -> dict[str, Tensor]:
    """Return the state dict of the model that ``build`` makes, from the cache if it is there.

    A file that is corrupt is built again and replaced. Files appear whole or not at all, so that several
    processes can share a folder; two that miss at the same time both build.

    Args:
        cache_dir: Folder of the cache; made if it is missing.
        key_parts: Whatever decides the result, as JSON values; the version of torch is added.
        build: Makes and trains the model; called only if the cache has no sound file for the key.

    Raises:
        ConfigError: If a key part is not a JSON value.
        OutputError: If the folder cannot be written; raised before ``build`` is called.
    """
    key = cache_key(key_parts)
    path = Path(cache_dir) / f"{key}.pt"
    state = _read(path, key)
    if state is None:
        require_writable(path.parent, "set cache_dir")  # before minutes of training, not after
        state = {name: tensor.detach().cpu() for name, tensor in build().state_dict().items()}
        content = io.BytesIO()
        torch.save({"key": key, "sha256": tensors_sha256(sorted(state.items())), "state": state}, content)
        write_atomically(path, content.getvalue(), "free some space or set cache_dir")
    return state


def cache_key(key_parts: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, of ``key_parts`` and torch's version as canonical JSON (keys sorted, no blanks).

    Raises:
        ConfigError: If a key part is not a JSON value.
    """
    parts = {**key_parts, "torch": torch.__version__}
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cache key is not JSON: {error}; use numbers, strings, lists and dicts") from None
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(*definitions: type | Callable[..., Any] | ModuleType) -> str:
    """The source of classes, functions or modules, less comments, docstrings and layout: a part of a key."""
    return "\n".join(_bare_source(inspect.getsource(definition)) for definition in definitions)


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """The state dict in the file at ``path``; None if there is no such file or it is corrupt."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = saved["state"]
        # The zip reader in torch does not check its checksums, so that a flipped bit would go unnoticed.
        if saved["key"] == key and saved["sha256"] == tensors_sha256(sorted(state.items())):
            return state
        problem = "its content does not match its hash"
    except Exception as error:  # damaged bytes can fail anywhere in the reader, in any way
        problem = f"{type(error).__name__} on reading it"
    _log.warning("cache file %s is corrupt (%s): it is built again", path, problem)
    return None


def _bare_source(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
