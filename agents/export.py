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
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    others = [module for module in modules if not isinstance(module, nn.Linear | nn.Tanh)]
    if others:
        raise ValueError(f"only tanh networks can be exported, this one has {type(others[0]).__name__}")
    return MLPPolicy(
        weights=tuple(layer.weight.detach().numpy().astype(np.float32, copy=True) for layer in linear),
        biases=tuple(layer.bias.detach().numpy().astype(np.float32, copy=True) for layer in linear),
        precisions=precisions,
        pp_per_nat=pp_per_nat,
    )
