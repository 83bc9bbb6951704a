"""The environment `wattbit/LayerPrecision-v0`: one episode gives every layer of a model its precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.evaluators.evaluator import Evaluator, Outcome
from envs.gate import SearchGate
from wattbit.errors import ConfigError, GuardrailError
from wattbit.features import Context, FeatureEncoder, Mask, Observation, PlanBuilder
from wattbit.plan import PrecisionPlan

_OPTIONS = ("tolerance_pp", "energy_price")


class LayerPrecisionEnv(gymnasium.Env[Observation, np.int64]):
    """Assign precisions layer by layer, in execution order.

    - **Context** (drawn at reset): tolerance, log-uniform over ``tolerance_range_pp``, and energy price,
      log-uniform over ``price_range``. Fix them with ``reset(options={"tolerance_pp": 1.0})``.
    - **Observation**: ``Box(size,)``, the features of `wattbit.features.FeatureEncoder`: context, shape of
      the layer, energy ratio and log-sensitivity of each precision, energy committed and still open,
      predicted drop used so far against the tolerance, previous precision.
    - **Action**: ``Discrete(precisions)``; `action_masks` says what the layer supports. A masked action
      raises ValueError: nothing is repaired silently.
    - **Reward** at a layer: price x share of the reference energy that the choice saves, conversion
      included.
    - **Terminal reward**, added to the last: ``-penalty * max(0, drop - tolerance) / tolerance`` with the
      drop that the search gate judges, measured by running the plan (the ratio counts up to 10),
      ``- divergence_weight * tanh(divergence)``.
    - **Info** at the end: plan, energy_j, provenance, drop_pp, feasible, tolerance_pp, evaluations.

    Args:
        evaluator: Runs plans on the ``search`` split.
        pp_per_nat: See `FeatureEncoder`.
        gate: Judges the drop.
        tolerance_range_pp: Smallest and largest tolerance drawn.
        price_range: Smallest and largest energy price drawn.
        penalty: Weight of a broken tolerance.
        divergence_weight: Weight of the smooth term that breaks ties between plans of equal drop.
        render_mode: ``"ansi"`` or None; `render` returns text either way.

    Raises:
        ConfigError: If a range or a weight makes no sense.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own name and type)

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        pp_per_nat: float = 10.0,
        gate: SearchGate | None = None,
        tolerance_range_pp: Sequence[float] = (0.1, 4.0),
        price_range: Sequence[float] = (1.0, 1.0),
        penalty: float = 2.0,
        divergence_weight: float = 0.05,
        render_mode: str | None = None,
    ) -> None:
        _require_range("tolerance_range_pp", tolerance_range_pp)
        _require_range("price_range", price_range)
        if not 0 < pp_per_nat < math.inf:
            raise ConfigError(f"pp_per_nat is {pp_per_nat}, must be a number above 0; 10 is the default")
        for name, weight in (("penalty", penalty), ("divergence_weight", divergence_weight)):
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{name} is {weight}, must be a number of at least 0")
        self.evaluator = evaluator
        self.encoder = FeatureEncoder(evaluator.profile, pp_per_nat)
        self.gate = gate or SearchGate()
        self.render_mode = render_mode
        self._tolerance_range_pp = (tolerance_range_pp[0], tolerance_range_pp[1])
        self._price_range = (price_range[0], price_range[1])
        self._penalty = penalty
        self._divergence_weight = divergence_weight
        self._profile = evaluator.profile
        self._reference_j = self._profile.reference_energy_j
        self._builder = PlanBuilder(self.encoder, Context(tolerance_range_pp[1]))
        bound = self.encoder.bound
        self.observation_space = spaces.Box(-bound, bound, (self.encoder.size,), np.float32)
        self.action_space = spaces.Discrete(len(self._profile.precisions))

    @property
    def tolerance_range_pp(self) -> tuple[float, float]:
        """Smallest and largest tolerance drawn, percentage points."""
        return self._tolerance_range_pp

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; ``options`` may fix ``tolerance_pp`` and ``energy_price``.

        Raises:
            ConfigError: If there is no such option.
            GuardrailError: If a tolerance or a price is not positive.
        """
        super().reset(seed=seed)
        fixed = options or {}
        unknown = [name for name in fixed if name not in _OPTIONS]
        if unknown:
            raise ConfigError(f"reset has no option {unknown[0]!r}; choose from {', '.join(_OPTIONS)}")
        # Drawn in any case, so that fixing one changes nothing else.
        tolerance, price = self._draw(self._tolerance_range_pp), self._draw(self._price_range)
        tolerance = float(fixed.get("tolerance_pp", tolerance))
        price = float(fixed.get("energy_price", price))
        for name, value in (("tolerance_pp", tolerance), ("energy_price", price)):
            if not 0 < value < math.inf:
                raise GuardrailError(f"{name} is {value}, must be a number above 0")
        self._builder = PlanBuilder(self.encoder, Context(tolerance, price))
        return self._builder.observation, {"tolerance_pp": tolerance, "energy_price": price}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Give the next layer the precision at index ``action``.

        Raises:
            ValueError: If there is no such action, or the layer does not support it.
            TypeError: If the action is not a whole number.
            IndexError: If the episode is over.
        """
        reward = self.assign(action)
        if not self.assigned:
            return self._builder.observation, reward, False, False, {}
        return self.finish(reward, self.evaluator.evaluate(self.plan))

    def assign(self, action: np.int64 | int) -> float:
        """The first half of `step`: give the next layer its precision and run nothing.

        Returns:
            The reward of the choice; raises as `step`.
        """
        layer_index = self._builder.layer_index
        energy_j = self._builder.assign(action)
        reference_j = self._profile.layers[layer_index].costs[self._profile.reference].energy_j
        return self._builder.context.energy_price * (reference_j - energy_j) / self._reference_j

    def finish(
        self, reward: float, outcome: Outcome
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The second half of the last `step`.

        Args:
            reward: What `assign` gave for the last layer.
            outcome: Outcome of `plan`.
        """
        reward += self._terminal_reward(outcome)
        return self._builder.observation, reward, True, False, self._info(outcome)

    @property
    def assigned(self) -> bool:
        """True once every layer has its precision."""
        return self._builder.done

    @property
    def plan(self) -> PrecisionPlan:
        """The plan so far, the layers not reached yet at the reference."""
        return self._builder.plan

    @property
    def observation(self) -> Observation:
        """What the policy sees now."""
        return self._builder.observation

    def action_masks(self) -> Mask:
        """Which precisions the next layer supports, (precisions,) bool; all, once the episode is over."""
        return self._builder.mask

    def render(self) -> str:
        """The plan so far, one layer a line."""
        return "\n".join(f"{layer}: {name}" for layer, name in self._builder.plan.items())

    def _terminal_reward(self, outcome: Outcome) -> float:
        tolerance_pp = self._builder.context.tolerance_pp
        excess = max(0.0, self._judged_drop_pp(outcome) - tolerance_pp) / tolerance_pp
        return -self._penalty * min(excess, 10.0) - self._divergence_weight * math.tanh(outcome.divergence)

    def _judged_drop_pp(self, outcome: Outcome) -> float:
        # The reference cannot drop against itself, whatever the size of the split.
        if outcome.plan == self._profile.reference_plan:
            return 0.0
        return self.gate.bound_pp(outcome.counts)

    def _info(self, outcome: Outcome) -> dict[str, Any]:
        tolerance_pp = self._builder.context.tolerance_pp
        return {
            "plan": outcome.plan,
            "energy_j": outcome.energy_j,
            "provenance": self._profile.provenance,
            "drop_pp": outcome.drop_pp,
            "feasible": self._judged_drop_pp(outcome) <= tolerance_pp,
            "tolerance_pp": tolerance_pp,
            "evaluations": self.evaluator.evaluations,
        }

    def _draw(self, limits: tuple[float, float]) -> float:
        low, high = limits
        drawn = math.exp(self.np_random.uniform(math.log(low), math.log(high)))
        return float(min(max(drawn, low), high))


def _require_range(name: str, limits: Sequence[float]) -> None:
    low, high = limits if len(limits) == 2 else (0.0, 0.0)
    if not 0 < low <= high < math.inf:
        raise ConfigError(f"{name} is {list(limits)}, must be two positive numbers, the smaller first")
