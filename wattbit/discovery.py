"""Finding out, by running it once, which layers of a model can switch and which BatchNorms they absorb.

A layer counts if its ``forward`` was really called: layers that fused code paths bypass are left alone,
because replacing their ``forward`` would silently change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from wattbit.batches import Inputs, call_model, logits_of, num_samples
from wattbit.errors import ModelError
from wattbit.kernels.layer_weights import LayerWeights, is_switchable, take_weights
from wattbit.patching import ForwardPatches
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
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a NaN or infinite parameter or buffer.

    Raises:
        ModelError: Naming the tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} holds {count} NaN or infinite of {tensor.numel()} values, allowed are 0; "
                "load a sound checkpoint or train the model again"
            )


@torch.inference_mode()
def find_layers(model: nn.Module, example: Inputs) -> tuple[FoundLayer, ...]:
    """Run ``example`` once and return the switchable layers in execution order.

    Raises:
        ModelError: If there is none, or ``example`` holds no sample.
    """
    samples = num_samples(example)
    if not samples:
        raise ModelError("the example batch holds 0 samples, needs at least 1; pass a small real batch")
    calls, followers = _record(model, example)
    if not calls:
        raise ModelError(
            "the model runs 0 switchable layers, needs at least 1; wattbit switches nn.Linear and "
            "nn.Conv2d (zero padding) that the forward pass calls as modules"
        )
    names = {module: name for name, module in model.named_modules()}
    ordered = sorted(calls.items(), key=lambda item: item[1].order)
    last = max(1, len(ordered) - 1)
    return tuple(
        FoundLayer(module, followers.get(module), _shape(names[module], module, call, samples, position / last))
        for position, (module, call) in enumerate(ordered)
    )


def _record(model: nn.Module, example: Inputs) -> tuple[dict[nn.Module, _Calls], dict[nn.Module, nn.BatchNorm2d]]:
    calls: dict[nn.Module, _Calls] = {}
    followers: dict[nn.Module, nn.BatchNorm2d] = {}
    produced: dict[int, nn.Module] = {}

    def watch_layer(module: nn.Module, original: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            y = cast(Tensor, original(x))
            call = calls.setdefault(module, _Calls(len(calls)))
            call.inputs.append(tuple(x.shape))
            # Kept alive so that no later tensor can have the same identity.
            call.outputs.append(y)
            produced[id(y)] = module
            return y

        return forward

    def watch_norm(module: nn.BatchNorm2d, original: Any) -> Any:
        def forward(x: Tensor) -> Any:
            source = produced.get(id(x))
            if isinstance(source, nn.Conv2d) and module.running_mean is not None:
                followers[source] = module
            return original(x)

        return forward

    patches = ForwardPatches()
    try:
        for module in model.modules():
            if is_switchable(module):
                patches.replace(module, partial(watch_layer, module))
            elif isinstance(module, nn.BatchNorm2d):
                patches.replace(module, partial(watch_norm, module))
        call_model(model, example)
    finally:
        patches.undo()
    return calls, followers


def _shape(name: str, module: nn.Module, calls: _Calls, samples: int, depth: float) -> LayerShape:
    outputs = sum(y.numel() for y in calls.outputs) // samples
    inputs = sum(torch.Size(shape).numel() for shape in calls.inputs) // samples
    weight = module.get_parameter("weight")
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


@torch.inference_mode()
def foldable(model: nn.Module, example: Inputs, found: Sequence[FoundLayer]) -> tuple[FoundLayer, ...]:
    """Keep only those BatchNorms whose folding leaves the model's output as it was.

    A convolution whose output is also read elsewhere cannot absorb its BatchNorm; that shows when the folded
    model runs, whatever the code of its forward pass looks like.
    """
    expected = logits_of(call_model(model, example))
    if _folding_is_exact(model, example, expected, found):
        return tuple(found)
    return tuple(
        layer if _folding_is_exact(model, example, expected, [layer]) else replace(layer, batch_norm=None)
        for layer in found
    )


def _folding_is_exact(
    model: nn.Module, example: Inputs, expected: Tensor, layers: Sequence[FoundLayer]
) -> bool:
    patches = ForwardPatches()
    try:
        for layer in layers:
            if layer.batch_norm is not None:
                folded = take_weights(layer.module, layer.batch_norm)
                patches.replace(layer.module, partial(_run_folded, folded))
                patches.replace(layer.batch_norm, lambda _: lambda x: x)
        output = logits_of(call_model(model, example))
    finally:
        patches.undo()
    scale = float(expected.abs().max()) or 1.0
    return float((output - expected).abs().max()) <= _FOLD_TOLERANCE * scale


def _run_folded(folded: LayerWeights, _original: Any) -> Any:
    return lambda x: folded.apply(x, folded.weight)
