"""What calibration learns about each layer's input: the numbers that static activation scales are made of.

Stored in a bundle as ``calibration.json``, so that a serving process quantizes activations exactly as the
search and the certificate did, without any calibration data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from wattbit.numerics import AffineQuantizer, activation_quantizer
from wattbit.precision import Precision

CALIBRATION_SCHEMA = 1

_SAMPLES_PER_LAYER = 16_384
_SAMPLES_PER_BATCH = 4_096


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """The calibrated input of one layer.

    Attributes:
        absmax: Largest absolute input value seen.
        affine: Affine quantizer for each integer width (bits -> quantizer).
    """

    absmax: float
    affine: Mapping[int, AffineQuantizer]


Calibration = Mapping[str, LayerCalibration]
"""Layer name -> its calibration."""


class ActivationObserver:
    """Collects a bounded, evenly spaced sample of a layer's input values over several batches."""

    def __init__(self) -> None:
        self._samples: list[Tensor] = []
        self._absmax = 0.0

    def observe(self, x: Tensor) -> None:
        """Add the values of ``x`` (any shape)."""
        flat = x.detach().reshape(-1).float()
        self._absmax = max(self._absmax, float(flat.abs().max()))
        # A stride that is odd does not fall in step with channels or image rows.
        step = max(1, flat.numel() // _SAMPLES_PER_BATCH) | 1
        self._samples.append(flat[::step][:_SAMPLES_PER_BATCH].clone())

    def calibrate(self, bits: Iterable[int]) -> LayerCalibration:
        """Fit the quantizers for each width in ``bits`` to what was observed."""
        sample = torch.cat(self._samples)
        step = max(1, -(-sample.numel() // _SAMPLES_PER_LAYER))
        sample = sample[::step]
        return LayerCalibration(self._absmax, {b: activation_quantizer(sample, b) for b in bits})


def integer_widths(precisions: Iterable[Precision]) -> tuple[int, ...]:
    """The activation widths that ``precisions`` need affine quantizers for, in bits."""
    return tuple(sorted({p.activation_bits for p in precisions if p.family == "int" and not p.weight_only}))


def calibration_to_json(calibration: Calibration) -> str:
    """The calibration as a JSON document that `calibration_from_json` reads."""
    layers = {name: asdict(layer) for name, layer in calibration.items()}
    return json.dumps({"schema": CALIBRATION_SCHEMA, "layers": layers}, indent=1, allow_nan=False) + "\n"


def calibration_from_json(text: str) -> dict[str, LayerCalibration]:
    """Read a document written by `calibration_to_json`.

    Raises:
        ValueError: If the text is not such a document.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != CALIBRATION_SCHEMA:
        raise ValueError(f"not a calibration of schema {CALIBRATION_SCHEMA}")
    try:
        return {
            name: LayerCalibration(
                absmax=float(layer["absmax"]),
                affine={int(bits): AffineQuantizer(**quantizer) for bits, quantizer in layer["affine"].items()},
            )
            for name, layer in data["layers"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"calibration lacks or garbles {error}") from error
