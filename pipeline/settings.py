"""From settings to objects: with the command line, the only place that knows Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from pipeline.cli import check_overrides, group_options, quoted
from pipeline.evaluation_settings import EvaluationSettings
from pipeline.factory import Factory
from pipeline.training_settings import TrainingSettings
from wattbit.errors import BundleError, ConfigError, WattbitError
from wattbit.guardrail import Guardrail, RelativeGuardrail
from wattbit.serving.bundle import ControllerBundle, load_bundle

DEFAULT_TOLERANCE_PP = 1.0


def build(node: DictConfig, **more: Any) -> Any:
    """Instantiate ``node``; an error raised on purpose inside comes out as it was raised.

    Raises:
        ConfigError: If the settings do not fit the constructor.
    """
    try:
        return instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, WattbitError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigError(f"{node.get('_target_')}: {error.__cause__ or error}; check its settings") from None


def build_factory(node: DictConfig) -> Factory[Any]:
    """What builds ``node`` later, as often as it is called."""
    made = build(node, _partial_=True)
    return Factory(made.func, made.keywords)


def training_settings(config: DictConfig, workload_option: str) -> TrainingSettings:
    """The settings of train.py.

    Args:
        config: As ``conf/train.yaml`` composes it.
        workload_option: The option chosen in ``conf/workload``.

    Raises:
        WattbitError: If they do not fit, or the energy that was asked for cannot be measured here.
    """
    env = build_factory(config.env)
    return TrainingSettings(
        workload=build_factory(config.workload),
        workload_option=workload_option,
        precisions=_listed(config, "precisions.names"),
        tolerances_pp=_listed(config, "tolerances_pp"),
        guardrail=build(config.guardrail),
        energy=build(config.energy),
        env=env,
        gate=env.arguments["gate"],
        agent=build_factory(config.agent),
        runtime=build_factory(config.runtime),
        baseline_budget=config.budget.baseline,
        agent_budget=config.budget.agent,
        time_limit_s=config.time_limit_s,
        seed=config.seed,
        threads=config.threads,
        workers=config.workers,
        verbose=config.verbose,
    )


def _listed(config: DictConfig, key: str) -> tuple[Any, ...]:
    values = OmegaConf.select(config, key)
    if not isinstance(values, ListConfig):
        raise ConfigError(f"{key} is {values!r:.80}, must be a list; write {key}=[{values}]")
    return tuple(values)


def compose_training(overrides: Sequence[str] = ()) -> TrainingSettings:
    """The settings of ``python train.py OVERRIDES``.

    Raises:
        WattbitError: If they do not fit.
    """
    config = check_overrides("train", list(overrides))
    return training_settings(config, config.hydra.runtime.choices["workload"])


def evaluation_settings(config: DictConfig) -> EvaluationSettings:
    """The settings of evaluate.py, as ``conf/evaluate.yaml`` composes them.

    Raises:
        WattbitError: If they do not fit, or the bundle cannot be loaded.
    """
    if config.bundle is None and config.plan is None:
        raise ConfigError(
            "nothing to evaluate: give bundle=FOLDER, plan=FILE.json, plan=int8, or several of them"
        )
    bundle = None if config.bundle is None else load_bundle(Path(config.bundle))
    return EvaluationSettings(
        source=build(_group(config, "energy", "auto")) if bundle is None else bundle,
        bundle_folder=config.bundle,
        plan=None if config.plan is None else str(config.plan),
        json=None if config.json is None else Path(config.json),
        workload=build_factory(_workload_node(config, bundle)),
        guardrail=_guardrail(config, bundle),
        seed=config.seed,
        threads=config.threads,
    )


def _guardrail(config: DictConfig, bundle: ControllerBundle | None) -> Guardrail | RelativeGuardrail:
    """The limits named on the command line, else those the bundle was certified against, else the default."""
    if bundle is not None and config.get("guardrail") is None and bundle.certificates:
        own = [certificate.guardrail for certificate in bundle.certificates]
        return min(own, key=lambda guardrail: abs(guardrail.tolerance_pp - DEFAULT_TOLERANCE_PP))
    guardrail: Guardrail | RelativeGuardrail = build(_group(config, "guardrail", "default"))
    return guardrail


def _workload_node(config: DictConfig, bundle: ControllerBundle | None) -> DictConfig:
    """The workload named on the command line, else the bundle's with the arguments it was made with."""
    if bundle is None or config.get("workload") is not None:
        return _group(config, "workload", "digits")
    name = bundle.workload.get("name")
    if name not in group_options("workload"):
        raise BundleError(
            f"{config.bundle} was made for workload {name!r}, which conf/workload has no file for; add it"
        )
    node = _group(config, "workload", str(name))
    given = bundle.workload.get("arguments", {})
    # Anybody may have made the bundle, and Hydra would call what _target_ names, and look up what ${} names.
    if not isinstance(given, dict) or not all(
        value is None or (isinstance(value, bool | int | float | str) and "${" not in str(value))
        for value in given.values()
    ):
        raise BundleError(f"{config.bundle} has workload arguments that are no plain values; export it again")
    arguments = {key: value for key, value in given.items() if key in node and not key.startswith("_")}
    arguments.pop("cache_dir", None)  # where data are kept is this machine's business
    return OmegaConf.merge(node, arguments)  # type: ignore[return-value]


def _group(config: DictConfig, group: str, default: str) -> DictConfig:
    """The option chosen for ``group``, or ``default`` with this run's seed and cache folder."""
    if config.get(group) is not None:
        node: DictConfig = config[group]
        return node
    overrides = [f"{group}={default}", f"seed={config.seed}", f"cache_dir={quoted(str(config.cache_dir))}"]
    composed: DictConfig = compose("evaluate", overrides)[group]
    return composed
