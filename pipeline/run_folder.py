"""The folder of one run: what is written there, whole or not at all, and what a resumed run reads."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wattbit.errors import ConfigError
from wattbit.profile import ModelProfile
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.strict_json import dump_json, parse_json

_STATE_SCHEMA = 2
# What a run has written when it fails before it found anything.
_WORTHLESS = {".hydra", "train.log", "tensorboard"}


class RunFolder:
    """Paths and files of a run.

    Args:
        path: The folder, which Hydra has made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Path:
        """Every plan evaluated, as JSON lines."""
        return self.path / "archive.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The agent, saved after each rollout."""
        return self.path / "ppo.zip"

    @property
    def bundle(self) -> Path:
        """The exported bundle."""
        return self.path / "bundle"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.path / "audit.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Replace the file ``name`` by ``data``, atomically."""
        self.write_text(name, dump_json(data))

    def write_text(self, name: str, text: str) -> None:
        """Replace the file ``name`` by ``text``, atomically."""
        write_atomically(self.path / name, text, "free space, or choose another hydra.run.dir")

    def save_state(self, fingerprint: str, profile: ModelProfile, calibration: str) -> None:
        """Keep what a resumed run must find again: the model's identity, its profile and calibration."""
        self.write_text("profile.json", profile.to_json())
        self.write_text("calibration.json", calibration)
        self.write_json("state.json", {"schema": _STATE_SCHEMA, "model_fingerprint": fingerprint})

    def load_state(self, fingerprint: str) -> tuple[ModelProfile, str] | None:
        """Profile and calibration of the interrupted run; None if it was stopped before it had them.

        Raises:
            ConfigError: If the folder is of another model, or a file is damaged.
        """
        state = self.path / "state.json"
        if not state.exists():
            return None
        try:
            saved = parse_json(state.read_bytes())
            if saved["schema"] != _STATE_SCHEMA:
                raise ValueError("an earlier version of wattbit wrote it, with other fingerprints of models")
            found = saved["model_fingerprint"]
            profile = ModelProfile.from_json((self.path / "profile.json").read_text(encoding="utf-8"))
            calibration = (self.path / "calibration.json").read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot resume {self.path}: {error}; start a new run") from None
        if found != fingerprint:
            raise ConfigError(
                f"cannot resume {self.path}: it is for model {found[:12]}…, this one is {fingerprint[:12]}…; "
                "use the same workload and seed, or start a new run"
            )
        return profile, calibration

    def publish(self, outputs: Path) -> None:
        """Point ``outputs/latest`` at this run, if the run lies below ``outputs``."""
        link = outputs / "latest"
        with contextlib.suppress(OSError, ValueError):
            target = self.path.resolve().relative_to(outputs.resolve())
            fresh = outputs / f".latest-{os.getpid()}"
            fresh.symlink_to(target, target_is_directory=True)
            fresh.replace(link)

    @contextlib.contextmanager
    def discarded_on_failure(self) -> Iterator[None]:
        """Remove the folder if the run fails before it has written anything of use."""
        try:
            yield
        except BaseException:
            if {path.name for path in self.path.iterdir()} <= _WORTHLESS:
                shutil.rmtree(self.path, ignore_errors=True)
                for parent in list(self.path.parents)[:2]:
                    with contextlib.suppress(OSError):
                        parent.rmdir()  # only if empty
            raise
