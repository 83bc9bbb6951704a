"""Environments in lockstep, whose plans are run together once every one of them is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.layer_precision import LayerPrecisionEnv
from wattbit.errors import ConfigError


class PlanVecEnv(VecEnv):
    """`LayerPrecisionEnv` environments of one evaluator, side by side in this process.

    All episodes have one step a layer, so they end together; their plans are then run by one
    ``evaluate_all``, so that they can share work. Observations, rewards, infos and masks are those
    of SB3's ``DummyVecEnv``, except that ``evaluations`` in the infos counts all plans of the step.

    Args:
        makers: Functions that make one environment each; all with the same evaluator.

    Raises:
        ConfigError: If there is none, two make the same environment, or the evaluators differ.
    """

    def __init__(self, makers: Sequence[Callable[[], LayerPrecisionEnv]]) -> None:
        self.envs = [make() for make in makers]
        if len({id(env) for env in self.envs}) < max(1, len(makers)):
            raise ConfigError(
                f"{len(makers)} makers made too few environments; each must make one of its own"
            )
        first = self.envs[0]
        if any(env.evaluator is not first.evaluator for env in self.envs):
            raise ConfigError("environments in lockstep have different evaluators; give all the same one")
        super().__init__(len(self.envs), first.observation_space, first.action_space)
        self.metadata = first.metadata
        self._actions: Iterable[np.int64] = ()

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode in every environment, with the seeds and options set before; (envs, features)."""
        observations = []
        for index, env in enumerate(self.envs):
            options = self._options[index] or None
            observation, self.reset_infos[index] = env.reset(seed=self._seeds[index], options=options)
            observations.append(observation)
        self._reset_seeds()
        self._reset_options()
        return np.stack(observations)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take the actions of the next step, (envs,)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; raises as `LayerPrecisionEnv.step` and the evaluator do.

        Returns:
            Observations (envs, features), rewards and dones (envs,), and one info each. Where episodes have
            ended, the observations are the first of the next ones.
        """
        rewards = [env.assign(action) for env, action in zip(self.envs, self._actions, strict=True)]
        infos: list[dict[str, Any]] = [{} for _ in self.envs]
        observations = [env.observation for env in self.envs]
        over = self.envs[0].assigned
        if over:
            outcomes = self.envs[0].evaluator.evaluate_all([env.plan for env in self.envs])
            for index, (env, outcome) in enumerate(zip(self.envs, outcomes, strict=True)):
                last, rewards[index], _, _, infos[index] = env.finish(rewards[index], outcome)
                infos[index]["terminal_observation"] = last
                observations[index], self.reset_infos[index] = env.reset()
        for info in infos:
            info["TimeLimit.truncated"] = False
        return (
            np.stack(observations),
            np.array(rewards, np.float32),
            np.full(self.num_envs, over),
            infos,
        )

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the environments at ``indices``; None: all."""
        return [getattr(env, attr_name) for env in self._at(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments at ``indices``; None: all."""
        for env in self._at(indices):
            setattr(env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """What a method of the environments at ``indices`` returns; None: all."""
        return [getattr(env, method_name)(*method_args, **method_kwargs) for env in self._at(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each of ``indices``: wrappers would hide the halves of a step."""
        return [False for _ in self._at(indices)]

    def _at(self, indices: VecEnvIndices) -> list[LayerPrecisionEnv]:
        return [self.envs[index] for index in self._get_indices(indices)]
