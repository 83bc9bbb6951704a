"""What stands in for the forwards of a model while it is attached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wattbit.execution.in_flight import InFlightBatch, InFlightBatches
from wattbit.execution.kernels import PackedKernel
from wattbit.execution.packing import Kernels


class SwitchedForwards:
    """Makes forwards that run what the batch under way in their thread holds.

    Args:
        in_flight: The batches under way.
        active: The kernels of a batch that begins now.
    """

    def __init__(self, in_flight: InFlightBatches, active: Callable[[], Kernels]) -> None:
        self._in_flight = in_flight
        self._active = active

    def model(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of the whole model: called directly, it is a batch under the active plan."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._in_flight.current() is not None:
                return original(*args, **kwargs)
            with self._in_flight.holding(InFlightBatch(self._active()), or_after_stop=True):
                return original(*args, **kwargs)

        return forward

    def layer(self, index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of the switchable layer at ``index``."""
        current, begin = self._in_flight.current, self._begin

        def forward(input: Tensor) -> Any:  # noqa: A002 - callers may give it by this name
            held = current() or begin()
            if held.watch is not None:
                held.watch(index, input)
            packed = held.kernels[index]
            return original(input) if packed is None else _run(packed, input)

        return forward

    def norm(self, index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of the BatchNorm that is folded into the layer at ``index``."""
        current, begin = self._in_flight.current, self._begin

        def forward(input: Tensor) -> Any:  # noqa: A002
            return original(input) if (current() or begin()).kernels[index] is None else input

        return forward

    def _begin(self) -> InFlightBatch:
        """What a part of the model holds that is called by itself."""
        return InFlightBatch(self._active())


def relu_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a ReLU between chained layers: codes come from a kernel that has applied it."""

    def forward(input: Tensor) -> Any:  # noqa: A002
        return input if input.dtype == torch.uint8 else original(input)

    return forward


def _run(packed: PackedKernel, x: Tensor) -> Tensor:
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return packed.run(x)
    # Autocast would change the kernel's arithmetic, and 16-bit outputs of other layers do not fit it.
    with torch.autocast(kind, enabled=False):
        return packed.run(x if x.dtype == torch.uint8 else x.float())
