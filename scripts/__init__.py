"""Commands: each file here is one, run as ``python -m scripts.NAME``."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from wattbit.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses arguments with a `ConfigError`, which says how the command is written.

    Args:
        usage: What is written after the command's name, in one line.
        settings: As for `argparse.ArgumentParser`.
    """

    def __init__(self, usage: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._one_line_usage = usage

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(f"{message}; write {self.prog} {self._one_line_usage}")
