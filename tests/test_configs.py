"""Every setting in conf/ names an argument of the constructor it is for, and every option composes."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from hydra.utils import get_method
from omegaconf import OmegaConf

from pipeline.cli import check_overrides, group_options, help_text
from pipeline.settings import compose_training
from wattbit.errors import ConfigError

CONF = ROOT / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]


def targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_its_keys_are_arguments_of_its_target(group: str, option: str) -> None:
    config = check_overrides("train", [f"{group}={option}"])
    found = list(targets(OmegaConf.to_container(config[group]))) if group != "experiment" else []
    for node in found:
        parameters = inspect.signature(get_method(node["_target_"])).parameters
        unknown = {str(key) for key in node if not str(key).startswith("_")} - set(parameters)
        assert not unknown, f"{node['_target_']} takes no {unknown}"


def test_every_device_table_is_an_option() -> None:
    for option in group_options("energy/device"):
        config = check_overrides("train", ["energy=modelled", f"energy/device={option}"])
        assert config.energy.device.name


def test_the_help_names_every_group_and_every_option() -> None:
    for name in ("train", "evaluate"):
        text = help_text(name)
        assert "$" not in text.replace("${seed}", "").replace("${cache_dir}", "")
        for group, option in OPTIONS:
            assert group in text
            assert option in text


def test_no_setting_file_is_empty() -> None:
    for path in CONF.rglob("*.yaml"):
        assert len(OmegaConf.load(path)) > 0, Path(path).name


@pytest.mark.parametrize("name", group_options("experiment"))
def test_what_an_experiment_sets_is_in_force_and_the_command_line_has_the_last_word(name: str) -> None:
    wanted = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    config = check_overrides("train", [f"experiment={name}"])
    assert config.budget == wanted.budget
    assert config.agent.total_timesteps == wanted.agent.total_timesteps
    assert check_overrides("train", [f"experiment={name}", "budget.agent=7"]).budget.agent == 7


def test_the_sentiment_experiment_and_workload_train_on_as_many_sentences_and_share_weights() -> None:
    splits = ("calibrate", "search", "certify", "test")
    workload, experiment = (
        check_overrides("train", [override]).workload
        for override in ("workload=sentiment", "experiment=sentiment")
    )
    assert experiment._target_ == workload._target_
    assert sum(experiment[name] for name in splits) == sum(workload[name] for name in splits)


def test_an_argument_that_a_constructor_lacks_is_named_with_the_constructor() -> None:
    settings = compose_training(["energy=modelled", "+agent.ppo.nonsense=1"])
    with pytest.raises(ConfigError, match=r"agents\.ppo\.PPOAgent: .*'nonsense'; check its settings"):
        settings.ppo_search(make_env=settings.env)
