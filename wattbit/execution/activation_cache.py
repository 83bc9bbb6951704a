"""Values kept between plans that begin alike, within a bound on memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wattbit.execution.layer_graph import Values
from wattbit.model_inputs import tensors_in


class ActivationCache:
    """Values before some parts of a `LayerGraph`, from which a later plan can go on.

    Args:
        begun: The values before the first part, which are always kept.
        calls: How much each part costs.
        memory_bytes: What all others may take together; what saves least is dropped.
    """

    def __init__(self, begun: Values, calls: Sequence[int], memory_bytes: int) -> None:
        self._begun = begun
        self._calls = calls
        self._memory_bytes = memory_bytes
        self._free = _storages(begun).keys()
        self._values: dict[int, Values] = {}
        self._bytes: dict[int, Mapping[int, int]] = {}

    def resume(self, common: int, returns: Mapping[int, int]) -> tuple[int, Values]:
        """The last part not beyond ``common`` that can be begun with, and a copy of the values before it.

        Args:
            common: Number of parts that the plan to come has in common with the one before.
            returns: How many plans after it begin at each of its parts; what none begins at is dropped.
        """
        part = max((part for part in self._values if part <= common), default=0)
        values = dict(self._values.get(part, self._begun))
        for other in [other for other in self._values if other > common or not returns.get(other)]:
            self._drop(other)
        return part, values

    def keep(self, part: int, values: Values, returns: Mapping[int, int]) -> None:
        """Keep what lies before ``part`` if a later plan begins there and the memory suffices."""
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
        """Calls that are saved for each byte kept."""
        before = max((other for other in self._values if other < part), default=0)
        saved = returns.get(part, 0) * sum(self._calls[before:part])
        return saved / max(1, sum(self._bytes[part].values()))


def _storages(values: Values) -> dict[int, int]:
    """Bytes of each piece of memory that values lie in, by its address."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(values))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
