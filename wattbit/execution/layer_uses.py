"""Finding out, by running an example, who reads what convolutions write."""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wattbit.execution.kernels.layer_weights import is_switchable
from wattbit.execution.patching import ForwardPatches, is_replaced
from wattbit.execution.sealed import Observed
from wattbit.model_inputs import Inputs, call_model


@dataclass(frozen=True, slots=True)
class LayerUses:
    """Who reads what some modules write.

    Attributes:
        readers: Of each module, call by call, what has read its output: a module, or None for anything else,
            be it an operation, a hook, or somebody who keeps the output.
        sources: Of each module, call by call, the module whose output it read, or None.
    """

    readers: dict[nn.Module, list[list[nn.Module | None]]] = field(default_factory=lambda: defaultdict(list))
    sources: dict[nn.Module, list[nn.Module | None]] = field(default_factory=lambda: defaultdict(list))

    def only_reader(self, module: nn.Module) -> nn.Module | None:
        """The module that reads every output of ``module`` once, if nobody else reads any; else None."""
        found = {reader for readers in self.readers.get(module, ()) for reader in readers}
        once = all(len(readers) == 1 for readers in self.readers.get(module, ()))
        return found.pop() if once and len(found) == 1 else None


@torch.no_grad()
def watch_uses(model: nn.Module, example: Inputs) -> LayerUses:
    """Run ``example`` and note who reads the outputs of plain convolutions, BatchNorms and ReLUs.

    Nothing is said of a model that fails only on stand-ins for its tensors.
    """
    uses, made = LayerUses(), list[tuple[weakref.ref[Observed], list[nn.Module | None]]]()

    def watched(module: nn.Module, original: Any) -> Any:
        def forward(input: Tensor) -> Tensor:  # noqa: A002 - callers may give it by this name
            source = None
            if isinstance(input, Observed):
                source = input.source
                input.readers.append(module)
                input = input.plain  # noqa: A001
            uses.sources[module].append(source)
            observed = Observed.of(original(input))
            observed.source, observed.readers = module, []
            uses.readers[module].append(observed.readers)
            made.append((weakref.ref(observed), observed.readers))
            return observed

        return forward

    patches = ForwardPatches()
    try:
        for module in model.modules():
            conv = isinstance(module, nn.Conv2d) and is_switchable(module)
            plain = type(module) in (nn.BatchNorm2d, nn.ReLU) and not is_replaced(module, "forward")
            if conv or plain:
                patches.replace(module, partial(watched, module))
        output = call_model(model, example)
        for observed, readers in made:
            if observed() is not None:  # in the output, or wherever the model keeps it
                readers.append(None)
        del output
    except Exception:  # a user's modules may do anything with a tensor
        uses = LayerUses()
    finally:
        patches.undo()
    if not uses.readers:
        call_model(model, example)  # which says whether the model fails by itself
    return uses


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """The hooks that see what ``module`` writes, and those that see what it reads (and perhaps change it)."""
    return module._forward_hooks, module._forward_pre_hooks
