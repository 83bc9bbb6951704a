"""An agent on disk: the training library's own file, with what a resumed search needs besides."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecEnv

from agents.training_callbacks import LearningPoint
from wattbit.errors import ConfigError
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.strict_json import dump_json, parse_json

_MEMBER = "wattbit.json"
_SCHEMA = 2


def save_agent(model: MaskablePPO, path: Path, pp_per_nat: float, curve: Sequence[LearningPoint]) -> None:
    """Replace the file at ``path`` by ``model``, whole or not at all.

    Args:
        model: The agent.
        path: The file.
        pp_per_nat: The feature encoder's constant that the agent was trained with.
        curve: Its learning curve so far.

    Raises:
        OutputError: If the file cannot be written.
    """
    content = io.BytesIO()
    model.save(content)
    # JSON has texts as keys only, so that tolerances become pairs.
    points = [{**asdict(point), "best_saving": list(point.best_saving.items())} for point in curve]
    extra = {"schema": _SCHEMA, "pp_per_nat": pp_per_nat, "learning_curve": points}
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(_MEMBER, dump_json(extra))
    write_atomically(path, content.getvalue())


def load_agent(
    path: Path, make_venv: Callable[[float], VecEnv]
) -> tuple[MaskablePPO, float, list[LearningPoint]]:
    """Read what `save_agent` wrote. The file holds pickles: only read one that a run of your own wrote.

    Args:
        path: The file.
        make_venv: Makes the environments to go on with, given ``pp_per_nat``.

    Returns:
        The agent, ``pp_per_nat`` and the learning curve so far.

    Raises:
        ConfigError: If the file is damaged, or of an agent for other observations or precisions.
    """
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            extra = parse_json(archive.read(_MEMBER))
        if extra["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {extra['schema']}, not {_SCHEMA}")
        points = extra["learning_curve"]
        curve = [LearningPoint(**{**point, "best_saving": dict(point["best_saving"])}) for point in points]
        pp_per_nat = float(extra["pp_per_nat"])
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise _refusal(path, error) from None
    venv = make_venv(pp_per_nat)
    try:
        model = MaskablePPO.load(io.BytesIO(content), env=venv, device="cpu")
    except Exception as error:  # other spaces, and damaged bytes that can fail anywhere in the reader
        raise _refusal(path, error) from None
    return model, pp_per_nat, curve


def _refusal(path: Path, error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0]
    return ConfigError(
        f"cannot go on with the agent in {path} ({reason}); remove the file to train from the start"
    )
