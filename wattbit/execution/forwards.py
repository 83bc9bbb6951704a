"""What stands in for the forwards of a model's layers while it is attached."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from wattbit.errors import ModelError
from wattbit.execution.in_flight import InFlightBatch
from wattbit.execution.kernels import PackedKernel
from wattbit.execution.sealed import Sealed

_NO_GRADIENT = (
    "a layer that runs at a low precision has no gradient; take gradients at the reference plan, or detach "
    "the model first"
)

Held = Callable[[], InFlightBatch]
"""Gives what the batch under way in the calling thread holds."""


def switched(held: Held, index: int, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of ``module``, the switchable layer at ``index``."""

    def forward(input: Tensor) -> Any:  # noqa: A002 - callers may give it by this name
        batch = held()
        if batch.watch is not None:
            batch.watch(index, input)
        packed = batch.kernels[index]
        if packed is None:
            return original(input)
        x = input.opened_by(module) if isinstance(input, Sealed) else input
        y = packed.run(x) if batch.passes_gradients else _run(packed, x)
        readers = packed.code_readers if y.dtype == torch.uint8 else packed.readers
        differentiable = torch.is_grad_enabled() and not batch.passes_gradients
        differentiable = differentiable and _wants_gradient(input, (module, *packed.readers))
        return batch.seal(y, readers, differentiable) if readers else _answer(y, differentiable)

    return forward


def merged(module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a BatchNorm or ReLU that kernels may have applied already, in what they have sealed."""

    def forward(input: Tensor) -> Any:  # noqa: A002
        if not isinstance(input, Sealed):
            return original(input)
        opened = input.opened_by(module)
        return opened if isinstance(opened, Sealed) else _answer(opened, input.differentiable)

    return forward


def whole(
    current: Callable[[], InFlightBatch | None],
    execute: Callable[[Callable[[], Any]], Any],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """The forward of the whole model: outside a batch, ``execute`` makes it one."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = partial(original, *args, **kwargs)
        return execute(call) if current() is None else call()

    return forward


def _run(packed: PackedKernel, x: Tensor) -> Tensor:
    if forward_ad._current_level >= 0:
        raise ModelError(_NO_GRADIENT)
    if x.requires_grad:
        x = x.detach()  # what torch would take for the gradient of rounding is a part of one
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return packed.run(x)
    # Autocast would change the kernel's arithmetic, and 16-bit outputs of other layers do not fit it.
    with torch.autocast(kind, enabled=False):
        return packed.run(x if x.dtype == torch.uint8 else x.float())


def _wants_gradient(x: Tensor, modules: tuple[nn.Module, ...]) -> bool:
    sealed = isinstance(x, Sealed) and x.differentiable
    return sealed or x.requires_grad or any(p.requires_grad for m in modules for p in m.parameters())


def _answer(y: Tensor, differentiable: bool) -> Tensor:
    if not differentiable:
        return y
    answer: Tensor = _NoGradient.apply(y, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
    return answer


class _NoGradient(torch.autograd.Function):
    """Passes a value on whose gradient is refused."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        """A copy, because `y` may be a view, which must not be written into under autograd."""
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Refuse."""
        raise ModelError(_NO_GRADIENT)
