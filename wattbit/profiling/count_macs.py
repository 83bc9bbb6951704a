"""Coverage, from a count of every matrix product and convolution of a model that does not know its layers."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wattbit.coverage import Coverage, LeftOut
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, call_model


@torch.no_grad()
def count_macs(model: nn.Module, batch: Inputs) -> dict[str, int]:
    """The multiply-accumulates of one forward pass by module, what its submodules do left out.

    Fused operations (LSTM cells, attention, transformer layers) are taken apart for it, so they count too.
    """
    counted: dict[str, int] = defaultdict(int)
    stack, seen, handles = [""], 0, []
    counter = FlopCounterMode(display=False)

    def credit() -> None:
        nonlocal seen
        total = counter.get_total_flops()
        counted[stack[-1]] += (total - seen) // 2
        seen = total

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            credit()
            stack.append(name)

        return hook

    def leave(*_: Any) -> None:
        credit()
        stack.pop()

    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for name, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(enter(name)),
                module.register_forward_hook(leave, always_call=True),
            ]
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter:
                call_model(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return {name: macs for name, macs in counted.items() if macs}


def coverage_of(model: SwitchableModel, counted: Mapping[str, int]) -> Coverage:
    """What of an attached model can switch, given what `count_macs` gave for it before."""
    switched, total = set(model.layer_names), sum(counted.values())
    modules = dict(model.model.named_modules())
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(set(counted) - switched, key=lambda n: -counted[n]):
        found[_kind(modules[name]), _reason(name, modules[name], model.left_alone)].append(name)
    left_out = [
        LeftOut(kind, names[0] or "the model", len(names), sum(counted[n] for n in names) / total, reason)
        for (kind, reason), names in found.items()
    ]
    uses: dict[int, list[str]] = defaultdict(list)
    held: dict[int, nn.Parameter] = {}
    for name, module in modules.items():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                held[id(parameter)] = parameter
                inside = name in switched and own == "weight"
                uses[id(parameter)].append(name if inside else "")
    weights = {key: parameter for key, parameter in held.items() if any(uses[key])}
    elements = sum(parameter.numel() for parameter in held.values())
    return Coverage(
        macs=sum(counted.get(name, 0) for name in switched) / total if total else 0.0,
        weights=sum(parameter.numel() for parameter in weights.values()) / max(1, elements),
        left_out=tuple(sorted(left_out, key=lambda part: -part.macs)),
        other_weight_bytes=sum(p.numel() * p.element_size() for key, p in held.items() if "" in uses[key]),
        tied=tuple(tuple(sorted(set(uses[key]))) for key in weights if len(uses[key]) > 1),
    )


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _reason(name: str, module: nn.Module, left_alone: Mapping[str, str]) -> str:
    if name in left_alone:
        return left_alone[name]
    if any(parameter is not None for parameter in module._parameters.values()):
        return "no kind of layer that switches"
    return "products within its forward pass"
