"""Inputs of any shape a model takes, cut into batches.

A model's inputs are one tensor (``model(x)``), a tuple of tensors (``model(*xs)``) or a dict of tensors
(``model(**xs)``), each with the samples along its first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wattbit.errors import ModelError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def num_samples(inputs: Inputs) -> int:
    """The number of samples in ``inputs``: the length of the first axis of its tensors."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    tensors = inputs.values() if isinstance(inputs, dict) else inputs
    return len(next(iter(tensors)))


def select(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """The samples of ``inputs`` at ``index``."""
    return map_tensors(inputs, lambda tensor: tensor[index])


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply ``function`` to every tensor of ``inputs``."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def batches(inputs: Inputs, batch_size: int) -> Iterator[Inputs]:
    """Cut ``inputs`` into batches of at most ``batch_size`` samples, in order."""
    for start in range(0, num_samples(inputs), batch_size):
        yield select(inputs, slice(start, start + batch_size))


def call_model(model: Callable[..., Any], batch: Inputs) -> Any:
    """Call ``model`` the way its inputs ask for: positional for tensors, by keyword for a dict."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: the tensor itself, its ``.logits``, or the first element of a tuple.

    Raises:
        ModelError: If there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returns {type(output).__name__}, which holds no logits; "
            "return a tensor of shape (samples, classes), or an object with .logits"
        )
    return logits


@torch.inference_mode()
def predict(model: nn.Module | Callable[..., Any], inputs: Inputs, batch_size: int) -> Tensor:
    """Run ``model`` over ``inputs`` in batches.

    Returns:
        Logits of shape (samples, classes), float32, on the CPU.
    """
    parts = [logits_of(call_model(model, batch)).float().cpu() for batch in batches(inputs, batch_size)]
    return torch.cat(parts)
