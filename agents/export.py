"""From the SB3 agent to the numpy policy that a bundle carries."""

from __future__ import annotations

import numpy as np
from sb3_contrib import MaskablePPO
from torch import nn

from wattbit.policy import MLPPolicy


def export_policy(model: MaskablePPO, precisions: tuple[str, ...], pp_per_nat: float) -> MLPPolicy:
    """Copy the policy network of ``model`` (tanh multilayer perceptron) into an `MLPPolicy`.

    Raises:
        ValueError: If the network is not a plain tanh perceptron.
    """
    modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    wanted = [nn.Tanh if position % 2 else nn.Linear for position in range(len(modules))]
    for module, kind in zip(modules, wanted, strict=True):
        if not isinstance(module, kind):
            raise ValueError(
                f"only perceptrons with tanh after each hidden layer can be exported, this one has "
                f"{type(module).__name__} in place of {kind.__name__}; train with the default activation"
            )
    linear = modules[::2]
    return MLPPolicy(
        weights=tuple(layer.weight.detach().numpy().astype(np.float32, copy=True) for layer in linear),
        biases=tuple(layer.bias.detach().numpy().astype(np.float32, copy=True) for layer in linear),
        precisions=precisions,
        pp_per_nat=pp_per_nat,
    )
