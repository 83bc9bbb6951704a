"""Everything that a run of train.py is told, as one checked value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.ppo_search import PPOSearch
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from pipeline.energy_source import EnergySource
from pipeline.factory import Factory
from wattbit.errors import ConfigError, GuardrailError, PrecisionError
from wattbit.execution.switchable import REFERENCE
from wattbit.guardrail import Guardrail, RelativeGuardrail
from wattbit.precision import parse_precisions
from wattbit.serving.runtime import PrecisionRuntime
from workloads.workload import Workload

_LARGEST = 2**32 - 1  # the largest seed that numpy takes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The settings of a run.

    Attributes:
        workload: Loads the workload.
        workload_option: Its name in ``conf/workload``.
        precisions: The precisions to offer, the reference first.
        tolerances_pp: Largest drops to find plans for, percentage points; the guardrail's own is added later.
        guardrail: The limits.
        energy: Where figures of energy come from.
        env: Builds the environment around an evaluator.
        gate: Decides which plans a search may offer.
        agent: Builds the search method around an agent; its argument ``ppo`` builds that.
        runtime: Builds the runtime that the exported bundle is checked with.
        baseline_budget: Distinct plans that each baseline may evaluate.
        agent_budget: Distinct plans that the agent may evaluate.
        time_limit_s: Seconds after which the search stops; None for no limit.
        seed: Everything random is drawn from it.
        threads: torch's threads within an operation.
        workers: Processes that evaluate plans.
        verbose: True to print every plan in the end.

    Raises:
        WattbitError: If a value makes no sense.
    """

    workload: Factory[Workload]
    workload_option: str
    precisions: Sequence[str]
    tolerances_pp: Sequence[float]
    guardrail: Guardrail | RelativeGuardrail
    energy: EnergySource
    env: Factory[LayerPrecisionEnv]
    gate: SearchGate
    agent: Factory[PPOSearch]
    runtime: Factory[PrecisionRuntime]
    baseline_budget: int
    agent_budget: int
    time_limit_s: float | None
    seed: int
    threads: int
    workers: int
    verbose: bool

    def __post_init__(self) -> None:
        known = [precision.name for precision in parse_precisions(self.precisions)]
        if known[0] != REFERENCE:
            raise PrecisionError(
                f"precisions start with {known[0]!r}; the reference {REFERENCE!r} must come first"
            )
        if not self.tolerances_pp:
            raise GuardrailError("tolerances_pp is empty, needs at least one; [0.25,0.5,1,2] is the default")
        tolerances = tuple(float(Guardrail(value).tolerance_pp) for value in self.tolerances_pp)
        object.__setattr__(self, "tolerances_pp", tolerances)
        require_workers(self.workers)
        require_machine_settings(self.seed, self.threads)
        for name, budget in (("budget.baseline", self.baseline_budget), ("budget.agent", self.agent_budget)):
            _require_whole(name, budget, 0, _LARGEST)
        limit = self.time_limit_s
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0
        ):
            raise ConfigError(f"time_limit_s is {limit!r:.80}, must be a number of seconds above 0, or null")
        if not isinstance(self.verbose, bool):
            raise ConfigError(f"verbose is {self.verbose!r:.80}, must be true or false")

    def ppo_search(self, **run: Any) -> PPOSearch:
        """The search method, its agent made with these further arguments of `agents.ppo.PPOAgent`."""
        ppo = self.agent.arguments["ppo"]
        return self.agent(ppo=Factory(ppo.func, ppo.keywords)(**run))

    @property
    def origin(self) -> dict[str, Any]:
        """How to make the workload again: its option and the arguments it is loaded with."""
        return {"name": self.workload_option, "arguments": dict(self.workload.arguments)}


def require_workers(workers: object) -> None:
    """Check the number of processes that evaluate plans.

    Raises:
        ConfigError: If it is not a whole number, at least 1.
    """
    _require_whole("workers", workers, 1, 1024)


def require_machine_settings(seed: object, threads: object) -> None:
    """Check the seed and torch's threads.

    Raises:
        ConfigError: If one is not a whole number that can be.
    """
    _require_whole("seed", seed, 0, _LARGEST)
    _require_whole("threads", threads, 1, 1024)


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{name} is {value!r:.80}, must be a whole number, at least {least} and at most {most}"
        )
