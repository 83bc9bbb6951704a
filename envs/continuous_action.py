"""Precision choices as one number between 0 and 1, for agents whose actions are continuous (HAQ's form)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.layer_precision import LayerPrecisionEnv
from wattbit.features import Observation
from wattbit.profile import ModelProfile

Action = NDArray[np.float32]


class ContinuousActionEnv(gymnasium.Env[Observation, Action]):
    """`LayerPrecisionEnv` with ``Box(0, 1, (1,))`` actions and the whole reward at the end.

    The interval is divided evenly among the precisions that the next layer supports, from the cheapest at 0
    to the dearest at 1, as Wang et al. (2019), "HAQ: Hardware-Aware Automated Quantization with Mixed
    Precision", CVPR, divide it among bit widths. The action runs as it is: nothing is changed after acting.

    Args:
        env: What assigns the precisions; context, observation and episode are its own.
    """

    metadata = LayerPrecisionEnv.metadata

    def __init__(self, env: LayerPrecisionEnv) -> None:
        self._env = env
        self.render_mode = env.render_mode
        profile = env.encoder.profile
        self._choices = [
            [profile.precisions.index(name) for name in by_energy(profile, layer)]
            for layer in range(len(profile.layers))
        ]
        self._layer = 0
        self._earned = 0.0
        self.observation_space = env.observation_space
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see `LayerPrecisionEnv.reset`."""
        super().reset(seed=seed)
        self._layer, self._earned = 0, 0.0
        return self._env.reset(seed=seed, options=options)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Give the next layer the precision that ``action``, shape (1,), falls on.

        Raises:
            ValueError: If the action lies outside 0 to 1.
            IndexError: If the episode is over.
        """
        value = float(action[0])
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"action is {value}, must be from 0 (cheapest precision) to 1 (dearest)")
        if self._layer == len(self._choices):
            raise IndexError("every layer has its precision already; reset the environment")
        choices = self._choices[self._layer]
        chosen = choices[min(int(value * len(choices)), len(choices) - 1)]
        observation, reward, ended, truncated, info = self._env.step(chosen)
        self._layer += 1
        self._earned += reward
        return observation, self._earned if ended else 0.0, ended, truncated, info

    def render(self) -> str:
        """The plan so far, one layer a line."""
        return self._env.render()


def by_energy(profile: ModelProfile, layer_index: int) -> tuple[str, ...]:
    """The precisions that a layer supports, from the one that costs it least energy to the dearest."""
    costs = profile.layers[layer_index].costs
    return tuple(sorted(profile.supported(layer_index), key=lambda name: costs[name].energy_j))
