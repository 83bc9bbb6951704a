"""Waiting for accelerators: their work is queued, and a window that closes before it is done bills nobody."""

from __future__ import annotations

import sys


def synchronize() -> None:
    """Wait until every accelerator that torch uses in this process has done what is queued.

    Where torch was never imported nothing is queued, and nothing is imported either.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    if torch.backends.mps.is_available():
        torch.mps.synchronize()
