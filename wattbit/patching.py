"""Replacing the ``forward`` of modules, and putting it back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_ABSENT = object()


class ForwardPatches:
    """The forwards replaced so far; `undo` puts every one back, the last one first."""

    def __init__(self) -> None:
        self._patched: list[tuple[nn.Module, Any]] = []

    def replace(self, module: nn.Module, make: Callable[[Any], Any]) -> None:
        """Replace ``module.forward`` by ``make(module.forward)``."""
        self._patched.append((module, module.__dict__.get("forward", _ABSENT)))
        module.forward = make(module.forward)

    def undo(self) -> None:
        """Put every replaced forward back."""
        while self._patched:
            module, before = self._patched.pop()
            if before is _ABSENT:
                # The instance attribute hid the class's method; without it the module is what it was.
                del module.forward
            else:
                module.forward = before
