"""What errors say to people."""

from __future__ import annotations

import pytest


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message of ``error``, which has to fit on one line."""
    message = str(error.value)
    assert "\n" not in message
    return message
