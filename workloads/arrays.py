"""Inputs as people have them, made into tensors in tuples and dicts; and the names of what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wattbit.errors import DataError
from wattbit.model_inputs import Inputs

_AS_IT_IS = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)
_REMEDY = "give tensors, numpy arrays, or tuples and dicts of them, with the samples along the first axis"


def as_inputs(value: Any, samples: int) -> Inputs:
    """Inputs of ``samples`` samples as `Split` holds them: a tensor, a tuple or a dict.

    Raises:
        DataError: If something in them is neither a tensor nor can be made one, nor a flag.
    """
    inputs = as_tensors(value)
    if isinstance(inputs, list):
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        whole = any(x.ndim and len(x) == samples for x in tensors)
        if len(tensors) == len(inputs) == samples and not whole and len({x.shape for x in tensors}) == 1:
            return torch.stack(tensors)
        return tuple(inputs)
    if not isinstance(inputs, Tensor | tuple | dict):
        raise DataError(f"inputs are a {type(value).__name__}; {_REMEDY}")
    return inputs


def as_tensors(value: Any) -> Any:
    """``value`` with every numpy array and list of numbers in it as a tensor, and every mapping as a dict.

    Those of floats become float32, which a reference model computes in, and those of integers int64.

    Raises:
        DataError: See `as_inputs`.
    """
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta or value.is_quantized):
        kind = "without values" if value.is_meta else f"of layout {value.layout} and type {value.dtype}"
        raise DataError(f"inputs hold a tensor {kind}; give a dense one that holds values")
    if isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, DataLoader | Dataset):
        raise DataError(
            f"inputs are a {type(value).__name__}, which may give other samples each time; collect them: "
            "inputs, labels = map(torch.cat, zip(*DataLoader(dataset, batch_size=64)))"
        )
    if isinstance(value, list) and value and all(map(_is_numbers, value)):
        value = _array(value)
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf":
            raise DataError(f"inputs hold an array of {value.dtype}, which no tensor can hold; {_REMEDY}")
        wanted: Any = {"f": np.float32, "b": np.bool_}.get(value.dtype.kind, np.int64)
        return torch.from_numpy(np.array(value, wanted))
    if isinstance(value, Mapping):
        return {key: as_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_tensors(item) for item in value]
    if isinstance(value, tuple):
        items = [as_tensors(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    raise DataError(f"inputs hold a {type(value).__name__}; {_REMEDY}")


def named_tensors(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """The tensors of ``inputs``, each with a name for messages and fingerprints, in a fixed order."""
    return [(name, leaf) for name, leaf in _leaves("inputs", inputs) if isinstance(leaf, Tensor)]


def named_flags(inputs: Inputs) -> list[str]:
    """What else is in ``inputs``, each as ``name=value``, in a fixed order."""
    return [f"{name}={leaf!r}" for name, leaf in _leaves("inputs", inputs) if not isinstance(leaf, Tensor)]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}[{key!r}]", value[key])
    elif isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _leaves(f"{name}[{position}]", item)
    else:
        yield name, value


def _is_numbers(value: Any) -> bool:
    """True for a number, or a list or tuple of numbers however deep."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_numbers, value))
    return isinstance(value, int | float)


def _array(value: list[Any]) -> Any:
    try:
        return np.array(value)
    except ValueError:
        raise DataError(f"inputs hold a list whose {len(value)} rows differ in length; pad them") from None
