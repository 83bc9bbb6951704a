"""The search methods that are compared, each built as it is shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from agents.ppo_search import PPOSearch
from agents.search_method import SearchMethod
from envs.gate import SearchGate
from envs.layer_precision import LayerPrecisionEnv
from pipeline.settings import compose_training

TOLERANCES_PP = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
"""One search serves all of them."""


RAW = SearchGate(0.5)
"""Judges the drop as observed."""


def shipped_gate() -> SearchGate:
    """The gate of ``conf/env/default.yaml``."""
    return compose_training(["energy=modelled"]).gate


GATES: Mapping[str, Callable[[], SearchGate]] = MappingProxyType(
    {"raw": lambda: RAW, "shipped": shipped_gate}
)
"""The gates that a search may run with."""


def _baseline(module: str, name: str, **arguments: bool) -> Callable[[SearchGate], SearchMethod]:
    def make(gate: SearchGate) -> SearchMethod:
        method: SearchMethod = getattr(import_module(f"agents.{module}"), name)(**arguments)
        return method

    return make


def _ddpg(gate: SearchGate) -> SearchMethod:
    from agents.ddpg import DDPG

    return DDPG(make_env=environment(gate))


def shipped_ppo(gate: SearchGate, checkpoint: Path | None = None) -> PPOSearch:
    """The method of ``conf/agent/ppo.yaml``, which keeps its agent in ``checkpoint`` if there is one."""
    return compose_training(["energy=modelled"]).ppo_search(make_env=environment(gate), checkpoint=checkpoint)


def environment(gate: SearchGate) -> partial[LayerPrecisionEnv]:
    """What builds an agent's environment: every tolerance asked for can be drawn."""
    return partial(LayerPrecisionEnv, gate=gate, tolerance_range_pp=(min(TOLERANCES_PP), max(TOLERANCES_PP)))


METHODS: Mapping[str, Callable[[SearchGate], SearchMethod]] = MappingProxyType(
    {
        "ppo": shipped_ppo,
        "ilp": _baseline("baselines", "ILP"),
        "greedy": _baseline("baselines", "Greedy"),
        "uniform": _baseline("baselines", "Uniform"),
        "random": _baseline("baselines", "Random"),
        "local_search": _baseline("local_search", "LocalSearch"),
        "nsga2": _baseline("nsga2", "NSGA2"),
        "ddpg": _ddpg,
        "bayesian": _baseline("bayesian", "BayesianOptimisation"),
        "bayesian_long": _baseline("bayesian", "BayesianOptimisation", long_steps=True),
    }
)
"""Name -> what builds it for a gate."""

GATE_BLIND = frozenset({"ilp", "greedy", "uniform", "random"})
"""Methods that ask for the same plans whatever the gate."""


ABLATIONS = frozenset({"bayesian_long"})
"""Parts of PPO's search by themselves, shown beside the baselines: surrogate and long steps, no policy."""


def baselines(methods: Sequence[str]) -> list[str]:
    """All methods but PPO and its ablations."""
    return [name for name in methods if name != "ppo" and name not in ABLATIONS]
