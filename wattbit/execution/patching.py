"""Replacing the ``forward`` of modules, and putting it back exactly as it was."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any, NoReturn

from torch import nn

from wattbit.errors import ModelError

_ABSENT = object()

_CLAIMS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[object]] = weakref.WeakKeyDictionary()
"""Modules that somebody is going to attach, and who."""
_CLAIMING = threading.RLock()


class PatchedForward(partial[Any]):
    """What stands in for a module's ``forward`` while it is replaced.

    A deep copy of its module gets a forward of its own, as it was before; otherwise the copy would run the
    weights of the module it was copied from. A `partial`, because calling one costs next to nothing.
    """

    _module: nn.Module
    _before: Any
    __wrapped__: Callable[..., Any]

    @classmethod
    def of(cls, module: nn.Module, make: Callable[[Any], Any]) -> PatchedForward:
        """Stand in for the forward of ``module`` by ``make(module.forward)``."""
        patched = cls(make(module.forward))
        patched._module = module
        patched._before = module.__dict__.get("forward", _ABSENT)
        # By this name `inspect.signature` finds the parameters of the forward that was replaced.
        patched.__wrapped__ = module.forward
        return patched

    @property
    def before(self) -> Any:
        """The forward that the module itself had before, not its class; `_ABSENT` if none."""
        return self._before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not _ABSENT:
            return copy.deepcopy(self._before, memo)
        return MethodType(type(self._module).forward, copy.deepcopy(self._module, memo))

    def __reduce__(self) -> NoReturn:
        raise ModelError(
            "the model cannot be pickled while it is attached; detach it first, or save its state_dict"
        )


class ForwardPatches:
    """The forwards replaced so far; `undo` puts every one back, the last one first."""

    def __init__(self) -> None:
        self._patched: list[tuple[nn.Module, Any]] = []

    def replace(self, module: nn.Module, make: Callable[[Any], Any]) -> None:
        """Replace ``module.forward`` by ``make(module.forward)``."""
        patched = PatchedForward.of(module, make)
        module.forward = patched
        self._patched.append((module, patched.before))

    def undo(self) -> None:
        """Put every replaced forward back."""
        while self._patched:
            module, before = self._patched.pop()
            if before is _ABSENT:
                # The instance attribute hid the class's method; without it the module is what it was.
                del module.forward
            else:
                module.forward = before


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that ``module`` has when it is not attached."""
    forward: Callable[..., Any] = module.forward
    return forward.__wrapped__ if isinstance(forward, PatchedForward) else forward


def is_replaced(module: nn.Module, name: str) -> bool:
    """True if somebody else has replaced the method ``name`` of ``module`` itself, not of its class."""
    own = module.__dict__.get(name)
    if own is None or isinstance(own, PatchedForward):
        return False
    # The copy of an attached module holds the method of its class.
    return bool(own != MethodType(getattr(type(module), name), module))


def require_unpatched(model: nn.Module) -> None:
    """Refuse a model that is attached already, in part or as part of another, or is claimed.

    Raises:
        ModelError: Naming the module that is taken.
    """
    for name, module in model.named_modules():
        owner = _CLAIMS.get(module, lambda: None)()
        if isinstance(module.__dict__.get("forward"), PatchedForward) or owner is not None:
            part = f"module {name!r} of the model" if name else "the model"
            raise ModelError(f"{part} is attached already; detach or close what holds it first")


def claim(model: nn.Module, owner: object) -> None:
    """Keep others from attaching ``model`` until `release`, or until ``owner`` is gone.

    Raises:
        ModelError: As `require_unpatched`.
    """
    with _CLAIMING:
        require_unpatched(model)
        _CLAIMS.update((module, weakref.ref(owner)) for module in _claimable(model))


def release(model: nn.Module, owner: object) -> None:
    """Give up what ``owner`` claimed of ``model``."""
    with _CLAIMING:
        for module in _claimable(model):
            if _CLAIMS.get(module, lambda: None)() is owner:
                del _CLAIMS[module]


def _claimable(model: nn.Module) -> Iterator[nn.Module]:
    """The model and its modules with weights; activations without any may serve several models."""
    for module in model.modules():
        if module is model or next(module.parameters(recurse=False), None) is not None:
            yield module
