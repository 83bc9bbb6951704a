"""Finding out, by running it once, which layers of a model can switch and which BatchNorms they absorb.

A layer counts if its ``forward`` was really called: layers that fused code paths bypass are left alone,
because replacing their ``forward`` would silently change nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wattbit.errors import ModelError
from wattbit.execution.kernels.layer_weights import LayerWeights, is_switchable, take_weights, weight_of
from wattbit.execution.patching import ForwardPatches
from wattbit.model_inputs import Inputs, call_model, logits_of, num_samples
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
    count: int = 0


class _Produced:
    """The last output of each convolution, known by identity until somebody writes into it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int | None, nn.Module]] = {}

    def add(self, y: Tensor, module: nn.Module) -> None:
        self._known[id(y)] = (weakref.ref(y), write_count(y), module)

    def source(self, x: Tensor) -> nn.Module | None:
        """The convolution whose unchanged output ``x`` is; None if there is none."""
        known = self._known.get(id(x))
        return known[2] if known and known[0]() is x and known[1] == write_count(x) else None


def write_count(tensor: Tensor) -> int | None:
    """Counts the writes into a tensor; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a NaN or infinite parameter or buffer, or one that holds no values yet.

    Raises:
        ModelError: Naming the tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(
                f"{name} holds no values (it is uninitialized or on the meta device); load the weights first"
            )
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
    calls, followers = _record(model, example)
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
        FoundLayer(
            module, followers.get(module), _shape(names[module], module, call, samples, position / last)
        )
        for position, (module, call) in enumerate(ordered)
    )


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


def _record(
    model: nn.Module, example: Inputs
) -> tuple[dict[nn.Module, _Calls], dict[nn.Module, nn.BatchNorm2d]]:
    calls: dict[nn.Module, _Calls] = {}
    # What each BatchNorm read, call by call: a convolution's output, or (None) something else.
    sources: dict[nn.BatchNorm2d, list[nn.Module | None]] = {}
    produced = _Produced()

    def watch_layer(module: nn.Module, original: Any) -> Any:
        def forward(input: Tensor) -> Tensor:  # noqa: A002 - callers may give it by this name
            y = cast(Tensor, original(input))
            call = calls.setdefault(module, _Calls(len(calls)))
            call.inputs += input.numel()
            call.outputs += y.numel()
            call.count += 1
            if isinstance(module, nn.Conv2d):
                produced.add(y, module)
            return y

        return forward

    def watch_norm(module: nn.BatchNorm2d, original: Any) -> Any:
        def forward(input: Tensor) -> Any:  # noqa: A002
            sources.setdefault(module, []).append(produced.source(input))
            return original(input)

        return forward

    patches = ForwardPatches()
    try:
        for module in model.modules():
            if is_switchable(module):
                patches.replace(module, partial(watch_layer, module))
            elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
                patches.replace(module, partial(watch_norm, module))
        call_model(model, example)
    finally:
        patches.undo()
    return calls, _followers(calls, sources)


def _followers(
    calls: dict[nn.Module, _Calls], sources: dict[nn.BatchNorm2d, list[nn.Module | None]]
) -> dict[nn.Module, nn.BatchNorm2d]:
    """The BatchNorm of each convolution whose every output goes to it, and which reads nothing else."""
    followers = {}
    for norm, read in sources.items():
        source = read[0]
        if source is not None and set(read) == {source} and len(read) == calls[source].count:
            followers[source] = norm
    return followers


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
                patches.replace(layer.batch_norm, lambda _: nn.Identity())
        output = logits_of(call_model(model, example))
    finally:
        patches.undo()
    scale = float(expected.abs().max()) or 1.0
    return float((output - expected).abs().max()) <= _FOLD_TOLERANCE * scale


def _run_folded(folded: LayerWeights, _original: Any) -> Any:
    def forward(input: Tensor) -> Tensor:  # noqa: A002
        return folded.apply(input, folded.weight)

    return forward
