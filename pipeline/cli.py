"""What train.py and evaluate.py share: settings checked before anything happens, errors in one line."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.run_folder import RunFolder
from wattbit.errors import ConfigError, WattbitError
from wattbit.storage.regular_file import read_regular
from wattbit.storage.writable import require_writable

CONF = Path(__file__).parent.parent / "conf"
_MOST_RECORD_BYTES = 2**20
USER_ERROR = 2
"""Exit code for anything the user can mend."""


def main(config_name: str, task: Callable[[DictConfig], None]) -> None:
    """Run ``task`` under Hydra; a `WattbitError` becomes one line on stderr and exit code 2."""
    arguments = sys.argv[1:]
    with one_line_errors():
        if {"--help", "-h"} & set(arguments):
            print(help_text(config_name))
            return
        if not any(argument.startswith("-") for argument in arguments):
            config = check_overrides(config_name, arguments)
            if config.hydra.output_subdir is not None:  # else nothing is written there
                folder = Path(config.hydra.run.dir)
                require_writable(folder, "choose another with hydra.run.dir=FOLDER")
                # Before Hydra writes there, which is told the folder: its name may hold the time.
                RunFolder(folder).claim(resumed=config.get("resume") is not None)
                sys.argv.append(f"hydra.run.dir={quoted(str(folder))}")

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def run(config: DictConfig) -> None:
        sys.argv[1:] = arguments
        with one_line_errors():
            task(config)

    run()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `WattbitError` into one line on stderr and exit code 2."""
    try:
        yield
    except WattbitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)


def resumed_arguments(arguments: list[str]) -> list[str]:
    """Command-line arguments with those of the run that ``resume=PATH`` names put in front.

    Raises:
        ConfigError: If there is no run in PATH.
    """
    given = [override for _, override in _parsed(arguments) if override.key_or_group == "resume"]
    if not given or given[-1].value() in (None, ""):
        return arguments
    if given[-1].is_sweep_override():
        raise ConfigError(
            f"{given[-1].input_line}: one run at a time can be resumed; quote a path with commas"
        )
    folder = Path(str(given[-1].value()).replace("\\${", "${"))
    record = folder / ".hydra" / "overrides.yaml"
    try:
        earlier = yaml.safe_load(read_regular(record, _MOST_RECORD_BYTES))
        if not isinstance(earlier, list) or not all(isinstance(item, str) for item in earlier):
            raise ValueError(f"{record} is no list of settings")
    except FileNotFoundError:
        raise ConfigError(
            f"cannot resume {folder}: there is no run in it; give a folder that train.py wrote"
        ) from None
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"cannot resume {folder}: {why:.200}; start a new run") from None
    own = ("resume", "hydra.run.dir")
    kept = [argument for argument, override in _parsed(earlier) if override.key_or_group not in own]
    return [*kept, *arguments, f"hydra.run.dir={quoted(str(folder))}"]


def quoted(text: str) -> str:
    """``text`` as a value of Hydra's grammar, in which it may hold anything."""
    return QuotedString(text.replace("${", "\\${"), Quote.single).with_quotes()


def _parsed(arguments: list[str]) -> Iterator[tuple[str, Override]]:
    """The settings among the arguments, as Hydra reads them; what it cannot read, it refuses itself."""
    parser = OverridesParser.create()
    for argument in arguments:
        with contextlib.suppress(HydraException):
            yield argument, parser.parse_override(argument)


def help_text(config_name: str) -> str:
    """The help of ``config_name``: its template with the options of every group and the settings' values."""
    config = check_overrides(config_name, [])
    template: str = config.hydra.help.template
    settings = {str(key): config._get_node(key) for key in config if key not in ("hydra", "energy")}
    text = OmegaConf.to_yaml(OmegaConf.create(settings), resolve=False)
    folders = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."})
    groups = "\n".join(f"  {group}: {', '.join(group_options(group))}" for group in folders)
    return template.replace("$GROUPS", groups).replace("$SETTINGS", textwrap.indent(text, "  ").rstrip())


def check_overrides(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose the configuration, and say what the choices are where an override does not fit.

    Raises:
        ConfigError: Naming the override and the valid choices.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose(config_name, overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigError(_explain(config_name, overrides, error)) from None
        # Of a group that may be left out, Hydra takes an option that does not exist for none.
        for _, override in _parsed(overrides):
            if group_options(override.key_or_group) and (why := _explain_one(config, override)):
                raise ConfigError(why)
        return config


def _explain(config_name: str, overrides: list[str], error: Exception) -> str:
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except (HydraException, OmegaConfBaseException):
        return f"cannot read the settings {' '.join(overrides)!r}: write key=value, lists as [a,b], no blanks"
    # Which keys there are depends on the options chosen.
    chosen = [str(o.input_line) for o in parsed if o.value() in group_options(o.key_or_group)]
    with contextlib.suppress(HydraException, OmegaConfBaseException):
        config = compose(config_name, chosen)
        for override in parsed:
            explanation = _explain_one(config, override)
            if explanation:
                return explanation
    return str(error).splitlines()[0]


def _explain_one(config: DictConfig, override: Override) -> str | None:
    key, value = override.key_or_group, override.value()
    if override.is_force_add():
        return None
    if not key:
        return f"{override.input_line}: names no setting; write key=value"
    options = group_options(key)
    if options:
        choices = ", ".join(_nearest_first(value, options))
        known = value is None or value in options
        return None if known else f"{key}={value}: no such option; choose from {choices}"
    if override.is_add():
        return None
    node: object = config
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"{key}: no such setting; the part before .{part} is a plain value"
        if part not in node:
            names = [str(name) for name in node if not str(name).startswith("_")]
            choices = ", ".join([*_deeper(node, part), *_nearest_first(part, names)])
            return f"{key}: no such setting; choose from {choices}"
        node = OmegaConf.select(node, part)
    return None


def _deeper(node: DictConfig, wanted: str, above: str = "") -> Iterator[str]:
    """Where below ``node`` there is a setting of the name wanted."""
    for name in map(str, node):
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            if wanted in child:
                yield f"{above}{name}.{wanted}"
            yield from _deeper(child, wanted, f"{above}{name}.")


def group_options(group: str) -> list[str]:
    """The options of a configuration group: the names of its files."""
    folder = CONF / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if re.fullmatch(r"[\w/]+", group) else []


def _nearest_first(value: object, choices: list[str]) -> list[str]:
    near = difflib.get_close_matches(str(value), choices, n=2, cutoff=0.5)
    return [*near, *(choice for choice in choices if choice not in near)]
