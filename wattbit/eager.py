"""The eager model behind what people hold: unwrapped where it can be, refused where it cannot."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wattbit.errors import ModelError

_TENSORS = (Tensor, nn.Parameter)


def eager_model(model: nn.Module) -> nn.Module:
    """``model``, or the one that `torch.compile` or data parallelism wraps; its layers can switch.

    Raises:
        ModelError: If it is no module, or is scripted, compiled in place or quantized already.
    """
    while True:
        if _is_compiled(model):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is a TorchScript module, whose layers cannot be switched one by one; give the "
                "eager model that was scripted or traced"
            )
        # A single layer that is compiled by itself is left alone; what contains layers would hide them.
        by_itself = module._compiled_call_impl is not None and any(module.children())
        if _is_compiled(module) or by_itself:
            raise ModelError(
                f"{where} is compiled within the model; give the model as it is before compile() is called"
            )
        package = type(module).__module__
        if package.startswith("torch.ao.nn.") and ".quantized" in package:
            raise ModelError(
                f"{where} is quantized already ({type(module).__name__}); give the float model that it was "
                "made from: wattbit quantizes it layer by layer"
            )
        for own, tensor in module._parameters.items():
            if tensor is None or is_lazy(tensor):
                continue
            if tensor.is_quantized or type(tensor.data) not in _TENSORS:
                raise ModelError(
                    f"weight {own!r} of {where} is a {type(tensor.data).__name__} of {tensor.dtype}, not a "
                    "plain float tensor; give the float model that it was made from"
                )
    return model


def require_values(name: str, tensor: Tensor) -> None:
    """Refuse a parameter or buffer that has no values yet.

    Raises:
        ModelError: If it is uninitialized or on the meta device.
    """
    if is_lazy(tensor) or tensor.is_meta:
        raise ModelError(
            f"{name} holds no values (it is uninitialized or on the meta device); load the weights first"
        )


def _is_compiled(module: Any) -> bool:
    # Known by its attribute: to import its class would import the whole compiler.
    return isinstance(module, nn.Module) and "_orig_mod" in module._modules
