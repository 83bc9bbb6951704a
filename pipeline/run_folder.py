"""The folder of one run: what is written there, whole or not at all, and what a resumed run reads."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from wattbit.errors import ConfigError, OutputError
from wattbit.profile import ModelProfile
from wattbit.storage.atomic_write import write_atomically
from wattbit.storage.regular_file import read_regular
from wattbit.storage.strict_json import dump_json, parse_json

if sys.platform != "win32":
    import fcntl

_STATE_SCHEMA = 2
_MOST_BYTES = 2**24
_LOCK = ".lock"
# What a run has written when it fails before it found anything.
_WORTHLESS = {_LOCK, ".hydra", "train.log", "tensorboard"}
# What a run has written when there is something to mix up.
_TRACES = ("state.json", "archive.jsonl", "results.json")
_held: dict[Path, IO[str]] = {}


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

    def claim(self, *, resumed: bool) -> None:
        """Make the folder this process's own until it ends; claiming it again changes nothing.

        The lock goes with the process, so that a run that was killed can be gone on with.

        Args:
            resumed: Whether it is to hold a run already.

        Raises:
            ConfigError: If another process runs there, or there is a run that was not to be gone on with.
            OutputError: If the folder cannot be written.
        """
        path = self.path.resolve()
        if path in _held:
            return
        remedy = "wait for its end, or choose another with hydra.run.dir=FOLDER"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / _LOCK).exists() and not (path / _LOCK).is_file():
                raise OSError(0, f"{_LOCK} is not a regular file")
            file = (path / _LOCK).open("a", encoding="utf-8")
            if sys.platform != "win32":
                # Not flock, which worker processes would inherit and keep.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES) or not os.access(path, os.W_OK):
                raise OutputError(f"cannot write to folder {self.path}: {error.strerror}; {remedy}") from None
            raise ConfigError(f"another run is writing to {self.path}; {remedy}") from None
        except OSError as error:
            raise OutputError(f"cannot write to folder {self.path}: {error.strerror}; {remedy}") from None
        _held[path] = file
        found = [name for name in _TRACES if (path / name).exists()]
        if found and not resumed:
            raise ConfigError(
                f"{self.path} holds a run already ({found[0]}): go on with it by resume={self.path}, "
                "or choose another hydra.run.dir"
            )
        for left in (*path.glob(".*.????????.tmp"), *path.glob("figures/.*.????????.tmp")):
            with contextlib.suppress(OSError):
                left.unlink()  # of a run that was killed while it wrote

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
            saved = parse_json(self._read("state.json"))
            if saved["schema"] != _STATE_SCHEMA:
                raise ValueError("an earlier version of wattbit wrote it, with other fingerprints of models")
            found = saved["model_fingerprint"]
            if not isinstance(found, str):
                raise ValueError(f"its model is {found!r:.80}")
            profile = ModelProfile.from_json(self._read("profile.json"))
            calibration = self._read("calibration.json")
            from wattbit.calibration import calibration_from_json  # late, because it needs torch

            calibration_from_json(calibration)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot resume {self.path}: {why}; start a new run") from None
        if found != fingerprint:
            raise ConfigError(
                f"cannot resume {self.path}: it is for model {found[:12]}…, this one is {fingerprint[:12]}…; "
                "use the same workload and seed, or start a new run"
            )
        return profile, calibration

    def _read(self, name: str) -> str:
        return read_regular(self.path / name, _MOST_BYTES).decode()

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
