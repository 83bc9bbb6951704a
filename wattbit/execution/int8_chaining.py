"""Finding layers whose output only the next layer reads, so that int8 codes can pass between them.

Where an int8 layer feeds just one other int8 layer, through nothing or a ReLU, the values need not be widened
to float32 and quantized again in between. Whether nobody else reads them is found out by running the example:
what lies between the two is filled with NaN, and the model's output must stay exactly what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from wattbit.execution.discovery import FoundLayer
from wattbit.execution.patching import ForwardPatches
from wattbit.model_inputs import Inputs, call_model, logits_of


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


@torch.no_grad()
def find_chains(model: nn.Module, example: Inputs, found: Sequence[FoundLayer]) -> tuple[Int8Chain, ...]:
    """Run ``example`` and return the chains between ``found`` layers, in execution order.

    Args:
        model: The model, in eval mode.
        example: A small batch of real inputs.
        found: The model's switchable layers.
    """
    candidates = _candidates(model, example, found)
    expected = logits_of(call_model(model, example))
    return tuple(
        chain for chain in candidates if torch.equal(_poisoned(model, example, found, chain), expected)
    )


def _candidates(model: nn.Module, example: Inputs, found: Sequence[FoundLayer]) -> list[Int8Chain]:
    # Tensors are kept while the example runs, so that no id is used twice.
    written: dict[int, tuple[Tensor, int, nn.ReLU | None]] = {}
    reads: list[Int8Chain] = []
    calls: Counter[nn.Module] = Counter()

    def layer(index: int, original: Any) -> Any:
        def forward(input: Tensor) -> Any:  # noqa: A002 - callers may give it by this name
            if id(input) in written:
                _, producer, relu = written[id(input)]
                reads.append(Int8Chain(producer, index, relu))
            calls[found[index].module] += 1
            y = original(input)
            written[id(y)] = (y, index, None)
            return y

        return forward

    def passed_on(relu: nn.ReLU | None, original: Any) -> Any:
        def forward(input: Tensor) -> Any:  # noqa: A002
            source = written.get(id(input))
            y = original(input)
            if relu is not None:
                calls[relu] += 1
            if source is not None and source[2] is None:
                written[id(y)] = (y, source[1], relu)
            return y

        return forward

    patches = ForwardPatches()
    try:
        for index, one in enumerate(found):
            patches.replace(one.module, partial(layer, index))
            if one.batch_norm is not None:
                patches.replace(one.batch_norm, partial(passed_on, None))
        for module in model.modules():
            if type(module) is nn.ReLU:
                patches.replace(module, partial(passed_on, module))
        call_model(model, example)
    finally:
        patches.undo()
    producers = Counter(chain.producer for chain in reads)

    def once(chain: Int8Chain) -> bool:
        modules = [found[chain.producer].module, found[chain.consumer].module, chain.relu]
        return producers[chain.producer] == 1 and all(calls[m] == 1 for m in modules if m is not None)

    return sorted((chain for chain in reads if once(chain)), key=lambda chain: chain.producer)


def _poisoned(model: nn.Module, example: Inputs, found: Sequence[FoundLayer], chain: Int8Chain) -> Tensor:
    """The model's output when only the consumer is shown what lies between the two layers."""
    producer, consumer = found[chain.producer], found[chain.consumer]
    last = chain.relu or producer.batch_norm or producer.module
    shown: list[Tensor] = []

    def hide(original: Any) -> Any:
        def forward(input: Tensor) -> Tensor:  # noqa: A002
            y = cast(Tensor, original(input))
            shown.append(y.clone())
            return y.fill_(torch.nan)

        return forward

    patches = ForwardPatches()
    try:
        patches.replace(last, hide)
        patches.replace(consumer.module, lambda original: lambda input: original(shown[-1]))  # noqa: A006
        return logits_of(call_model(model, example))
    finally:
        patches.undo()
