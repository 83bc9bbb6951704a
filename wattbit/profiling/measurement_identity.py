"""What a measurement depends on besides what is measured: the key under which it is kept."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from wattbit.energy.meter import EnergyMeter
from wattbit.execution import kernels
from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import Inputs, tensors_in
from wattbit.storage.fingerprint import model_fingerprint, tensors_sha256


def measurement_identity(meter: EnergyMeter, model: SwitchableModel, batch: Inputs) -> dict[str, Any]:
    """What every measurement of ``model`` on this machine depends on, as plain JSON values.

    Args:
        meter: The meter.
        model: The model; the values of its weights count, because they move a device's power.
        batch: What it is measured on; its values count as well.
    """
    return {
        "model": model_fingerprint(model.model),
        "batch": tensors_sha256(("", tensor) for tensor in tensors_in(batch)),
        "meter": type(meter).__qualname__,
        "provenance": meter.provenance,
        "device": meter.device,
        "driver": str(getattr(meter, "driver", platform.release())),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": _kernels_digest(),
    }


def _kernels_digest() -> str:
    """SHA-256 of the source of wattbit's kernels: another kernel is another measurement."""
    digest = hashlib.sha256()
    for path in sorted(Path(kernels.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
