"""The identity of a model: what a certificate and a bundle are valid for."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wattbit.errors import ModelError


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor of the state dict, names in order.

    The model's code is not part of it: two architectures with equal state dicts are not told apart. Neither
    is extra state that is no tensor.

    Raises:
        ModelError: If a tensor holds no values, uninitialized or on the meta device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(
                f"{name} holds no values (it is uninitialized or on the meta device); load the weights first"
            )
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
