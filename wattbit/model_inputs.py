"""Inputs of any shape a model takes, cut into batches.

A model's inputs are one tensor (``model(x)``), a tuple (``model(*xs)``) or a dict (``model(**xs)``) of
tensors with the samples along their first axis. What else is in there, such as flags, None, or a mask that
all samples share, goes to the model as it is. Tensors may lie in tuples, lists and dicts within.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wattbit.errors import ConfigError, DataError, ModelError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


def num_samples(inputs: Inputs) -> int:
    """The number of samples in ``inputs``: the length of the first axis of the first tensor that has one.

    Raises:
        ModelError: If there is no such tensor.
    """
    for tensor in tensors_in(inputs):
        if tensor.ndim:
            return len(tensor)
    raise ModelError(
        f"inputs of type {type(inputs).__name__} hold no tensor with samples, need at least 1; "
        "give a tensor, or a tuple or dict of tensors, with the samples along the first axis"
    )


def select(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """The samples of ``inputs`` at ``index``.

    Raises:
        ModelError: If ``inputs`` holds no tensor.
    """
    samples = num_samples(inputs)
    return map_tensors(inputs, lambda x: x[index] if x.ndim and len(x) == samples else x)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in ``value``, in order; it may be a tensor itself, or nested as inputs are."""
    for leaf in pytree.tree_iter(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, _OWN_CLASSES):
            yield from tensors_in(_plain(leaf))


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Any]) -> Inputs:
    """Apply ``function`` to every tensor of ``inputs``."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        return map_tensors(_plain(leaf), function) if isinstance(leaf, _OWN_CLASSES) else leaf

    mapped: Inputs = pytree.tree_map(of_leaf, inputs)
    return mapped


def batches(inputs: Inputs, batch_size: int) -> Iterator[Inputs]:
    """Cut ``inputs`` into batches of at most ``batch_size`` samples, in order.

    Raises:
        ConfigError: If ``batch_size`` is below 1.
        ModelError: If ``inputs`` holds no tensor.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size!r}: must be at least 1; 256 is usual")
    for start in range(0, num_samples(inputs), batch_size):
        yield select(inputs, slice(start, start + batch_size))


def call_model(model: Callable[..., Any], batch: Inputs) -> Any:
    """Call ``model`` the way its inputs ask for: positional for tensors, by keyword for a dict."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch)


def inputs_of_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The inputs with which `call_model` repeats ``model(*args, **kwargs)``.

    Raises:
        ModelError: If the call mixes positional and keyword arguments, and ``model.forward`` has parameters
            that cannot be given by keyword.
        TypeError: If the arguments do not fit ``model.forward``.
    """
    if not kwargs:
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args
    if not args:
        return dict(kwargs)
    by_keyword: dict[str, Any] = {}
    signature = inspect.signature(model.forward)
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise ModelError(
                f"argument {name!r} of the model cannot be given by keyword beside {', '.join(kwargs)}; "
                "give all arguments by position"
            )
        by_keyword |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return by_keyword


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output, (samples, classes), two classes or more: argmax is what it predicts.

    They are the tensor itself, its ``.logits`` or ``["logits"]``, or the first tensor of a tuple that is not
    a single number, as a loss is. Axes of length 1 behind the classes are dropped. One logit a sample becomes
    two, the first of them 0: argmax then goes by its sign, and softmax is its sigmoid.

    Raises:
        ModelError: If there are none, or a tuple begins with one number a sample and holds rows of them too:
            losses and logits, or logits and features, cannot be told apart.
    """
    found = raw_logits(output)
    if found.ndim > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if found.ndim == 1:
        found = found.unsqueeze(1)
    one = found.ndim > 1 and found.shape[1] == 1
    return torch.cat([torch.zeros_like(found), found], 1) if one else found


def raw_logits(output: Any) -> Tensor:
    """The logits in a model's output in the shape it gives them; see `logits_of`."""
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = found.get("logits")
    if isinstance(found, tuple | list):
        found = _first_logits(found)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model returns {type(output).__name__}, which holds no logits; "
            "return a tensor of shape (samples, classes), or an object with .logits"
        )
    return found


def _first_logits(values: Sequence[Any]) -> Any:
    """The first of a model's outputs, or of those behind a loss, which is a single number."""
    while len(values) > 1 and isinstance(values[0], Tensor) and values[0].ndim == 0:
        values = values[1:]
    first = values[0] if values else None
    rows = [v for v in values[1:] if isinstance(v, Tensor) and v.ndim > 1 and v.shape[1] > 1]
    if isinstance(first, Tensor) and first.ndim == 1 and rows:
        raise ModelError(
            f"the model returns a tuple of shapes {tuple(first.shape)} and {tuple(rows[0].shape)}, either of "
            "which could be the logits; return the logits alone, or an object with .logits"
        )
    return first


@torch.inference_mode()
def predict(model: nn.Module | Callable[..., Any], inputs: Inputs, batch_size: int) -> Tensor:
    """Run ``model`` over ``inputs`` in batches.

    Returns:
        Logits of shape (samples, classes), float32, on the CPU.

    Raises:
        DataError: If ``inputs`` holds no sample.
    """
    return concatenated(call_model(model, batch) for batch in batches(inputs, batch_size))


def concatenated(outputs: Iterable[Any]) -> Tensor:
    """The logits in a model's ``outputs`` for several batches: (samples, classes), float32, on the CPU.

    Raises:
        DataError: If there is no output.
        ModelError: If an output holds no logits.
    """
    parts = [logits_of(output).float().cpu() for output in outputs]
    if not parts:
        raise DataError("0 samples give no logits, need at least 1; check the split")
    return torch.cat(parts)


_OWN_CLASSES = (dict, list, tuple)
"""Leaves to pytree if they are of a class of their own that nobody registered with it."""


def _plain(leaf: Any) -> Any:
    return next(kind(leaf) for kind in _OWN_CLASSES if isinstance(leaf, kind))
