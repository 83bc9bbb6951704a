"""The identity of tensors and models: what a certificate and a bundle are valid for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wattbit.eager import eager_model, require_values


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The SHA-256, as hex digits, of each tensor's name, dtype, shape and bytes, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """`tensors_sha256` of the state dict, names in order.

    The model's code is not part of it: two architectures with equal state dicts are not told apart. Neither
    is extra state that holds no tensor.

    Raises:
        ModelError: If a tensor holds no values, uninitialized or on the meta device; or as `eager_model`.
    """
    state = sorted(eager_model(model).state_dict().items())
    tensors = [(name, tensor) for name, tensor in state if isinstance(tensor, Tensor)]
    for name, tensor in tensors:
        require_values(name, tensor)
    return tensors_sha256(tensors)
