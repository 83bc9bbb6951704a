"""Finding layers whose output only the next layer reads, so that int8 codes can pass between them.

Where an int8 layer feeds just one other int8 layer, through nothing or a ReLU, the values need not be widened
to float32 and quantized again in between. Whether nobody else reads them is found out by running the example,
and guarded in every later batch (`Sealed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from wattbit.execution.discovery import FoundLayer
from wattbit.execution.layer_uses import LayerUses, hooks_of


@dataclass(frozen=True, slots=True)
class Int8Chain:
    """Layer ``producer`` feeds layer ``consumer`` (indices in execution order) and nothing else.

    Attributes:
        producer: The layer that writes.
        consumer: The only layer that reads.
        relu: The ReLU between them; None if there is none.
    """

    producer: int
    consumer: int
    relu: nn.ReLU | None

    @property
    def layers(self) -> tuple[int, int]:
        """The two layers' indices, the producer first."""
        return self.producer, self.consumer


def find_chains(found: Sequence[FoundLayer], uses: LayerUses) -> tuple[Int8Chain, ...]:
    """The chains between ``found`` layers, in execution order.

    Args:
        found: The model's switchable layers.
        uses: Who read what they wrote, when an example ran.
    """
    index = {layer.module: i for i, layer in enumerate(found)}
    chains = (_chain(uses, producer, layer, index) for producer, layer in enumerate(found))
    return tuple(chain for chain in chains if chain is not None)


def _chain(
    uses: LayerUses, producer: int, layer: FoundLayer, index: Mapping[nn.Module, int]
) -> Int8Chain | None:
    relu: nn.ReLU | None = None
    last: nn.Module = layer.module
    reader = None if last._forward_hooks else uses.only_reader(last)
    while reader and len(uses.readers[last]) == 1 and not any(hooks_of(reader)):
        if reader in index:
            once = len(uses.readers[reader]) == 1
            return Int8Chain(producer, index[reader], relu) if once else None
        if type(reader) is nn.ReLU and relu is None:
            relu = reader
        elif last is not layer.module or id(reader) != id(layer.batch_norm):
            return None
        last, reader = reader, uses.only_reader(reader)
    return None
