"""Intermediate values kept for later plans that start with the same layers, within a memory limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattbit.execution.layer_graph import Values
from wattbit.execution.sealed import Sealed
from wattbit.model_inputs import tensors_in


class ActivationCache:
    """Values before some parts of a `LayerGraph`, from which a later plan can continue.

    Args:
        first: The values before the first part, which are always kept.
        calls: The cost of each part.
        memory_bytes: Limit for all others together; those that save least are dropped.
    """

    def __init__(self, first: Values, calls: Sequence[int], memory_bytes: int) -> None:
        self._first = first
        self._calls = calls
        self._memory_bytes = memory_bytes
        self._free = _storages(first).keys()
        self._values: dict[int, Values] = {}
        self._bytes: dict[int, Mapping[int, int]] = {}

    def resume(self, common: int, returns: Mapping[int, int]) -> tuple[int, Values]:
        """The last part up to ``common`` whose values are kept, and a copy of these values.

        Args:
            common: Number of parts that the next plan shares with the one before.
            returns: How many later plans start at each of its parts; values that none needs are dropped.
        """
        part = max((part for part in self._values if part <= common), default=0)
        values = dict(self._values.get(part, self._first))
        for other in [other for other in self._values if other > common or not returns.get(other)]:
            self._drop(other)
        return part, values

    def keep(self, part: int, values: Values, returns: Mapping[int, int]) -> None:
        """Keep the values before ``part`` if a later plan starts there and they fit in memory."""
        if part in self._values or not part or not returns.get(part):
            return
        self._values[part] = dict(values)
        self._bytes[part] = {
            place: size for place, size in _storages(values).items() if place not in self._free
        }
        while self._values and self._total_bytes() > self._memory_bytes:
            self._drop(min(self._values, key=lambda each: self._worth(each, returns)))

    def _drop(self, part: int) -> None:
        del self._values[part], self._bytes[part]

    def _total_bytes(self) -> int:
        places: dict[int, int] = {}
        for each in self._bytes.values():
            places.update(each)
        return sum(places.values())

    def _worth(self, part: int, returns: Mapping[int, int]) -> float:
        """Calls saved per byte kept."""
        before = max((other for other in self._values if other < part), default=0)
        saved = returns.get(part, 0) * sum(self._calls[before:part])
        return saved / max(1, sum(self._bytes[part].values()))


def _storages(values: Values) -> dict[int, int]:
    """The size of each storage behind the values, bytes, by its address."""
    tensors = (tensor.plain if isinstance(tensor, Sealed) else tensor for tensor in tensors_in(values))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
