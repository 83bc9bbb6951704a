"""Tensors that stand for what lies between two layers, so that whoever else reads it is noticed.

Where a BatchNorm is folded into a convolution, or an int8 layer writes codes for the next one, what lies
between is not what the model's own code would find there. `Observed` finds out, while an example runs, who
reads it; `Sealed` guards it in every later batch. Both look like the float32 tensor they stand for (shape,
strides, type) and have no values: any operation on one, views and writes in place included, comes here.
"""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class SealBrokenError(RuntimeError):
    """Something read what lies between two layers that were rewritten to run as one."""


class _StandIn(Tensor):
    """A tensor without values that stands for ``plain``."""

    plain: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, plain: Tensor) -> Self:
        """Stand for ``plain``: float32, or codes of it."""
        made: Self = cls._make_wrapper_subclass(
            cls, plain.shape, strides=plain.stride(), dtype=torch.float32, device=plain.device
        )
        made.plain = plain
        return made


class Sealed(_StandIn):
    """What only ``readers`` may read, one after the other; ``differentiable`` if it is to have a gradient."""

    readers: tuple[nn.Module, ...]
    differentiable: bool
    seals: list[weakref.ref[Sealed]]

    @classmethod
    def for_readers(
        cls,
        plain: Tensor,
        readers: tuple[nn.Module, ...],
        differentiable: bool,
        seals: list[weakref.ref[Sealed]],
    ) -> Sealed:
        """``plain``, sealed and added to ``seals``."""
        sealed = cls.of(plain)
        sealed.readers, sealed.differentiable, sealed.seals = readers, differentiable, seals
        seals.append(weakref.ref(sealed))
        return sealed

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse every operation."""
        raise SealBrokenError(f"{func} reads what lies between two layers that run as one")

    def opened_by(self, reader: nn.Module) -> Tensor:
        """What ``reader`` reads: the values if it is the last reader, else the same, sealed for the others.

        Raises:
            SealBrokenError: If it is not the next reader.
        """
        if self.readers[0] is not reader:
            raise SealBrokenError(f"{type(reader).__name__} reads what is not for it")
        if len(self.readers) == 1:
            return self.plain
        return Sealed.for_readers(self.plain, self.readers[1:], self.differentiable, self.seals)


class Observed(_StandIn):
    """The output of ``source``; ``readers`` says what has read it: a module, or None for anything else."""

    source: nn.Module
    readers: list[nn.Module | None]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note that it was read, and do what was asked with the values."""

        def plain(observed: Observed) -> Tensor:
            observed.readers.append(None)
            return observed.plain

        args, kwargs = pytree.tree_map_only(Observed, plain, (args, kwargs or {}))
        return func(*args, **kwargs)
