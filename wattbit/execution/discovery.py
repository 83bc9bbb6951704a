"""Finding out, by running it once, which layers of a model can switch and which BatchNorms they absorb.

A layer counts if its ``forward`` was really called: layers that fused code paths bypass are left alone,
because replacing their ``forward`` would silently change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wattbit.eager import require_values
from wattbit.errors import ModelError
from wattbit.execution.kernels.layer_weights import (
    LayerWeights,
    is_switchable,
    take_weights,
    weight_of,
    why_left_alone,
)
from wattbit.execution.layer_uses import LayerUses, hooks_of
from wattbit.execution.patching import ForwardPatches
from wattbit.model_inputs import Inputs, call_model, logits_of, num_samples, tensors_in
from wattbit.profile import LayerKind, LayerShape

# Folding moves a multiplication; in float32 its effect on the output is about 1e-6.
_FOLD_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A switchable layer: its module, the BatchNorm to fold into it (or None), and its shape."""

    module: nn.Module
    batch_norm: nn.BatchNorm2d | None
    shape: LayerShape


@dataclass(slots=True)
class _Calls:
    """What was seen of one module while the example ran."""

    order: int
    inputs: int = 0
    outputs: int = 0


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a NaN or infinite parameter or buffer, or one that holds no values yet.

    Raises:
        ModelError: Naming the tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        require_values(name, tensor)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} holds {count} NaN or infinite of {tensor.numel()} values, allowed is 0; "
                "load a sound checkpoint or train the model again"
            )


@torch.no_grad()
def find_layers(model: nn.Module, example: Inputs) -> tuple[FoundLayer, ...]:
    """Run ``example`` once and return the switchable layers in execution order.

    Raises:
        ModelError: If there is none, one is not in float32 or has no name, or ``example`` holds no sample.
    """
    samples = num_samples(example)
    if not samples:
        raise ModelError("the example batch holds 0 samples, needs at least 1; pass a small real batch")
    calls = _record(model, example)
    if not calls:
        raise ModelError(
            "the model runs 0 switchable layers, needs at least 1; wattbit switches nn.Linear and "
            "nn.Conv2d (zero padding) that the forward pass calls as modules"
        )
    names = {module: name for name, module in model.named_modules()}
    for module in calls:
        _require_usable(names[module], module)
    ordered = sorted(calls.items(), key=lambda item: item[1].order)
    last = max(1, len(ordered) - 1)
    return tuple(
        FoundLayer(module, None, _shape(names[module], module, call, samples, position / last))
        for position, (module, call) in enumerate(ordered)
    )


def left_alone(model: nn.Module, found: Sequence[FoundLayer]) -> dict[str, str]:
    """Why the linear layers and convolutions of ``model`` that are not ``found`` do not switch, by name."""
    switched = {layer.module for layer in found}
    return {
        name: why_left_alone(module) or "the forward pass does not call it as a module"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in switched
    }


def _require_usable(name: str, module: nn.Module) -> None:
    if not name:
        raise ModelError(
            "the model is itself a single layer, which has no name to plan for; wrap it: nn.Sequential(model)"
        )
    dtype = weight_of(module).dtype
    if dtype != torch.float32:
        raise ModelError(
            f"layer {name!r} has {dtype} weights, the reference must be torch.float32; call model.float()"
        )


def _record(model: nn.Module, example: Inputs) -> dict[nn.Module, _Calls]:
    calls: dict[nn.Module, _Calls] = {}

    def watch_layer(module: nn.Module, original: Any) -> Any:
        def forward(input: Tensor) -> Tensor:  # noqa: A002 - callers may give it by this name
            y = cast(Tensor, original(input))
            call = calls.setdefault(module, _Calls(len(calls)))
            call.inputs += input.numel()
            call.outputs += y.numel()
            return y

        return forward

    patches = ForwardPatches()
    try:
        for module in model.modules():
            if is_switchable(module):
                patches.replace(module, partial(watch_layer, module))
        logits_of(call_model(model, example))
    finally:
        patches.undo()
    return calls


def _shape(name: str, module: nn.Module, calls: _Calls, samples: int, depth: float) -> LayerShape:
    # A layer that runs once per batch, not once per sample, counts as at least 1 per sample.
    outputs, inputs = max(1, calls.outputs // samples), max(1, calls.inputs // samples)
    weight = weight_of(module)
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels and module.groups > 1
        kind: LayerKind = "depthwise_conv2d" if depthwise else "conv2d"
        geometry = (max(module.kernel_size), max(module.stride), module.groups)
        channels = (module.in_channels, module.out_channels)
    else:
        kind, geometry = "linear", (1, 1, 1)
        channels = (weight.shape[1], weight.shape[0])
    return LayerShape(
        name=name,
        kind=kind,
        macs=outputs * weight[0].numel(),
        weight_elements=weight.numel(),
        input_elements=inputs,
        output_elements=outputs,
        in_channels=channels[0],
        out_channels=channels[1],
        kernel_size=geometry[0],
        stride=geometry[1],
        groups=geometry[2],
        depth=depth,
    )


@torch.no_grad()
def foldable(
    model: nn.Module, example: Inputs, found: Sequence[FoundLayer], uses: LayerUses
) -> tuple[FoundLayer, ...]:
    """Give each layer the BatchNorm that folds into it.

    That is the one which alone reads what a convolution writes, and reads nothing else, if every tensor that
    the model returns stays as it was when the folded model runs.
    """
    found = [replace(layer, batch_norm=_follower(uses, layer.module)) for layer in found]
    if not any(layer.batch_norm for layer in found):
        return tuple(found)
    expected = _output_tensors(call_model(model, example))
    if _folding_is_exact(model, example, expected, found):
        return tuple(found)
    return tuple(
        layer if _folding_is_exact(model, example, expected, [layer]) else replace(layer, batch_norm=None)
        for layer in found
    )


def _follower(uses: LayerUses, module: nn.Module) -> nn.BatchNorm2d | None:
    norm = uses.only_reader(module)
    if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or set(uses.sources[norm]) != {module}:
        return None
    return None if module._forward_hooks or any(hooks_of(norm)) else norm


def _folding_is_exact(
    model: nn.Module, example: Inputs, expected: Sequence[Tensor], layers: Sequence[FoundLayer]
) -> bool:
    patches = ForwardPatches()
    try:
        for layer in layers:
            if layer.batch_norm is not None:
                folded = take_weights(layer.module, layer.batch_norm)
                patches.replace(layer.module, partial(_run_folded, folded))
                patches.replace(layer.batch_norm, lambda _: nn.Identity())
        found = _output_tensors(call_model(model, example))
    finally:
        patches.undo()
    return len(found) == len(expected) and all(map(_is_close, found, expected))


def _output_tensors(output: Any) -> list[Tensor]:
    """Every tensor that a model returned, also in objects of its own classes."""
    tensors = list(tensors_in(output))
    for leaf in pytree.tree_leaves(output):
        names = [each.name for each in dataclasses.fields(leaf)] if dataclasses.is_dataclass(leaf) else ()
        tensors += tensors_in([getattr(leaf, name, None) for name in names or getattr(leaf, "__dict__", ())])
    return tensors


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(found, expected, rtol=0.0, atol=_FOLD_TOLERANCE * (scale or 1.0), equal_nan=True)


def _run_folded(folded: LayerWeights, _original: Any) -> Any:
    def forward(input: Tensor) -> Tensor:  # noqa: A002
        return folded.apply(input, folded.weight)

    return forward
