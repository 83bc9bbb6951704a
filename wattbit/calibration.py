"""What calibration learns about each layer's input: the numbers that static activation scales are made of.

Stored in a bundle as ``calibration.json``, so that a serving process quantizes activations exactly as the
search and the certificate did, without any calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import ModelError, WattbitError
from wattbit.numerics import AffineQuantizer, activation_quantizer
from wattbit.precision import Precision
from wattbit.storage.strict_json import dump_json, parse_json, require_number

CALIBRATION_SCHEMA = 1

_SAMPLES_PER_LAYER = 16_384
_SAMPLES_PER_BATCH = 4_096
_SEED = 0


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
    """Collects a bounded pseudo-random sample of a layer's input values over several batches.

    The sample covers every index of every axis evenly: samples, channels or columns, and positions. What is
    true of some channel or position only is so found, whatever the shapes.

    Args:
        layer: The layer's name.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self._samples: list[Tensor] = []
        self._kept = 0
        self._thinning = 1
        self._low, self._high = math.inf, -math.inf
        self._random = torch.Generator().manual_seed(_SEED)

    @property
    def sample(self) -> Tensor:
        """The values kept of all that were observed, shape (values,)."""
        return torch.cat(self._samples)

    def observe(self, x: Tensor) -> None:
        """Add the values of ``x`` (any shape).

        Raises:
            ModelError: If one is NaN or infinite.
        """
        if not x.numel():
            return
        x = x.detach().float()
        low, high = (float(end) for end in x.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ModelError(
                f"layer {self.layer!r} reads NaN or infinite activations; "
                "calibrate on inputs for which the model's activations are finite"
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        count = min(x.numel(), _SAMPLES_PER_BATCH)
        self._samples.append(self._some(x, max(1, count // self._thinning)))
        self._kept += self._samples[-1].numel()
        if self._kept > 4 * _SAMPLES_PER_LAYER:
            # Early batches and those to come are thinned alike, so that all count the same.
            merged = self.sample
            self._samples = [self._some(merged, len(merged) // 3)]
            self._kept = len(self._samples[0])
            self._thinning *= 3

    def _some(self, x: Tensor, count: int) -> Tensor:
        """``count`` values of ``x``, or all if they are no more: along each axis, every index as often."""
        if x.numel() <= count:
            return x.reshape(-1).clone()
        x = x.flatten(2) if x.ndim > 3 else x  # positions of an image are one axis
        return x[tuple(self._indices(size, count).to(x.device) for size in x.shape)]

    def _indices(self, size: int, count: int) -> Tensor:
        rounds = [torch.randperm(size, generator=self._random) for _ in range(-(-count // size))]
        return torch.cat(rounds)[:count]

    def calibrate(self, bits: Iterable[int]) -> LayerCalibration:
        """Fit the quantizers for each width in ``bits`` to what was observed.

        Raises:
            ModelError: If nothing was observed.
        """
        if not self._samples:
            raise ModelError(
                f"layer {self.layer!r} ran on 0 calibration samples, needs at least 1; "
                "calibrate on inputs that reach every layer"
            )
        sample = self._some(self.sample, _SAMPLES_PER_LAYER)
        # The true ends of the range are among the values, however rare they are.
        low, high = (float(end) for end in sample.aminmax())
        lacking = [self._low] * (self._low < low) + [self._high] * (self._high > high)
        sample = torch.cat([sample, sample.new_tensor(lacking)])
        absmax = max(-self._low, self._high)
        return LayerCalibration(absmax, {b: activation_quantizer(sample, b) for b in bits})


def integer_widths(precisions: Iterable[Precision]) -> tuple[int, ...]:
    """The activation widths that ``precisions`` need affine quantizers for, in bits."""
    return tuple(sorted({p.activation_bits for p in precisions if p.family == "int" and not p.weight_only}))


def calibration_to_json(calibration: Calibration) -> str:
    """The calibration as a JSON document that `calibration_from_json` reads."""
    layers = {name: asdict(layer) for name, layer in calibration.items()}
    return dump_json({"schema": CALIBRATION_SCHEMA, "layers": layers})


def calibration_from_json(text: str) -> dict[str, LayerCalibration]:
    """Read a document written by `calibration_to_json`.

    Raises:
        ValueError: If the text is not such a document.
    """
    data = parse_json(text)
    if not isinstance(data, dict) or data.get("schema") != CALIBRATION_SCHEMA:
        raise ValueError(f"not a calibration of schema {CALIBRATION_SCHEMA}")
    try:
        return {name: _layer_from(layer) for name, layer in data["layers"].items()}
    except (AttributeError, KeyError, TypeError, WattbitError) as error:
        raise ValueError(f"calibration lacks or garbles {error}") from error


def _layer_from(layer: Mapping[str, Any]) -> LayerCalibration:
    absmax = require_number(layer["absmax"], "absmax")
    affine = {int(bits): AffineQuantizer(**quantizer) for bits, quantizer in layer["affine"].items()}
    for bits, quantizer in affine.items():
        if quantizer.bits != bits or not isinstance(quantizer.zero_point, int):
            raise ValueError(f"quantizer {quantizer} is listed for {bits} bits")
    return LayerCalibration(float(absmax), affine)
