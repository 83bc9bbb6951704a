"""Noticing, before each batch, that a model's weights are no longer those its layers were packed from."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from wattbit.errors import ModelError

# Values compared of each tensor on a CPU, because torch does not count writes through `.data`, which as a
# rule change all of a tensor. For a GPU's answer a batch would have to wait.
_COMPARED = 256
_VERSION = attrgetter("_version")


def write_count(tensor: Tensor) -> int | None:
    """Counts the writes into a tensor; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


class WeightsWatch:
    """Remembers a model's modules, parameters and persistent buffers: which they are, and how often written.

    Args:
        model: The model.
        ignored: Names of parameters and buffers to leave out.
    """

    def __init__(self, model: nn.Module, ignored: Collection[str] = ()) -> None:
        # (name, the dict of a module that holds it, its key there)
        self._places: list[tuple[str, dict[str, Any], str]] = [
            (f"{path}.{key}" if path else key, holder, key)
            for path, module in model.named_modules()
            for holder in (module._parameters, module._buffers, module._modules)
            for key in holder
            if holder is not module._buffers or key not in module._non_persistent_buffers_set
        ]
        self._places = [place for place in self._places if place[0] not in ignored]
        self._held = self._hold()
        tensors = [held for held in self._held if isinstance(held, Tensor)]
        self._counted = [tensor for tensor in tensors if not tensor.is_inference()]
        self._tensors = tensors
        self._marks = self._mark()
        groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
            if plain and tensor.device.type == "cpu" and tensor.is_floating_point():
                groups.setdefault(tensor.dtype, []).append(_some_of(tensor))
        self._some = [(group, torch.cat(group)) for group in groups.values()]

    def require_unchanged(self) -> None:
        """Refuse to go on if one was written into, replaced, moved or cast since.

        Raises:
            ModelError: If one was.
        """
        if self._changed():
            raise ModelError(
                "the model's weights have changed since it was attached, and its plans are for the earlier "
                "ones; run the reference plan, or certify the new weights and attach the model again"
            )

    def written(self) -> set[str]:
        """The names of those that were written into or replaced since."""
        counts = {id(t): count for t, count in zip(self._counted, self._marks, strict=False)}
        places = zip(self._places, self._hold(), self._held, strict=True)
        return {
            name
            for (name, _, _), now, before in places
            if now is not before or (id(now) in counts and now._version != counts[id(now)])
        }

    def _changed(self) -> bool:
        # By identity: tensors that are equal may be others.
        if not all(map(is_, self._hold(), self._held)):
            return True
        return self._mark() != self._marks or any(
            not torch.equal(torch.cat(group), before) for group, before in self._some
        )

    def _hold(self) -> list[Any]:
        return [holder.get(key) for _, holder, key in self._places]

    def _mark(self) -> list[int]:
        return [*map(_VERSION, self._counted), *map(Tensor.data_ptr, self._tensors)]


def _some_of(tensor: Tensor) -> Tensor:
    """Some values of ``tensor``, in its own memory."""
    flat = tensor.detach()
    reach = flat.untyped_storage().nbytes() // flat.element_size() - flat.storage_offset()
    return flat.as_strided((min(flat.numel(), reach, _COMPARED),), (1,))
