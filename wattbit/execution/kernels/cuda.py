"""How an NVIDIA GPU is asked which of its kernels it can run.

Three questions, all of which must be answered with yes: does the layer's shape fit what torch asks of the
operation; has the device the compute capability; and does the kernel, run once on a small layer on this very
device with this very driver, give what the emulated one gives? The last one is asked once per process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from wattbit.calibration import LayerCalibration
from wattbit.execution.kernels.emulated import pack_emulated
from wattbit.execution.kernels.kernel import Pack
from wattbit.execution.kernels.layer_weights import LayerWeights
from wattbit.execution.kernels.registry import AnyPack, native_kernel
from wattbit.numerics import ActivationRange, AffineQuantizer
from wattbit.precision import Precision, precision

_log = logging.getLogger(__name__)

Fits = Callable[[LayerWeights], bool]
"""Says whether a layer's shape is one that an operation takes."""

_TRIAL_WIDTH = 256
_TRIAL_OUT = 64
_TRIAL_ROWS = 33  # no multiple of anything, so that padding is tried too
_TRIAL_SIDE = 7  # pixels
_TRIAL_MAGNITUDE = 3.0
# 16-bit results differ by a rounding, some 0.4 % of a value; what is wrong is off by tens of percent.
_TRIAL_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class CudaOperation:
    """What a kernel needs of a device and of a layer.

    Attributes:
        precision: Name of the precision it runs.
        least_capability: The compute capability (major, minor) from which on devices have it.
        fits: Whether a layer's shape is one it takes.
        pack: Prepares the layer.
    """

    precision: str
    least_capability: tuple[int, int]
    fits: Fits
    pack: Pack

    @property
    def name(self) -> str:
        """The kernel's name, for people."""
        return f"cuda {self.precision}"

    def supports(self, device: torch.device, layer: LayerWeights, wanted: Precision) -> bool:
        """True if ``device`` runs ``layer`` at ``wanted`` with this kernel."""
        if wanted.name != self.precision or device.type != "cuda" or not self.fits(layer):
            return False
        if compute_capability(device) < self.least_capability:
            return False
        return works(self, device, layer.is_conv)


CUDA_OPERATIONS: list[CudaOperation] = []
"""The operations of NVIDIA GPUs, one per precision."""


def cuda_kernel(
    precision: str, least_capability: tuple[int, int], fits: Fits
) -> Callable[[AnyPack], AnyPack]:
    """Register the decorated function as the ``pack`` of a `CudaOperation`; the arguments are its others."""

    def register(pack: AnyPack) -> AnyPack:
        operation = CudaOperation(precision, least_capability, fits, pack)
        CUDA_OPERATIONS.append(operation)
        return native_kernel(operation.name, operation.supports)(pack)

    return register


def compute_capability(device: torch.device) -> tuple[int, int]:
    """The (major, minor) capability of an NVIDIA GPU; (0, 0) where torch is built for other GPUs."""
    if torch.version.cuda is None:
        return 0, 0
    return torch.cuda.get_device_capability(device)


@cache
def works(operation: CudaOperation, device: torch.device, is_conv: bool) -> bool:
    """True if the kernel runs a small layer on ``device`` and its output is that of the emulated kernel."""
    layer, calibration, x = _trial(device, is_conv)
    wanted = precision(operation.precision)
    with torch.inference_mode(False), torch.no_grad():
        expected = pack_emulated(layer, wanted, calibration)(x)
        try:
            found = operation.pack(layer, wanted, calibration)(x)
            difference = float((found - expected).norm() / expected.norm())
        except torch.OutOfMemoryError:
            raise  # says nothing about the kernel
        except (RuntimeError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            _log.warning("%s does not run on %s (%s): it is emulated", operation.name, device, reason)
            return False
    # NaN is not below anything.
    if difference <= _TRIAL_TOLERANCE:
        return True
    _log.warning(
        "%s on %s is off by %.3g of the output, allowed is %.3g: it is emulated",
        operation.name, device, difference, _TRIAL_TOLERANCE,
    )  # fmt: skip
    return False


def _trial(device: torch.device, is_conv: bool) -> tuple[LayerWeights, LayerCalibration, torch.Tensor]:
    """A small layer on ``device``, its calibration, and inputs that saturate here and there."""
    generator = torch.Generator().manual_seed(0)
    shape = (_TRIAL_OUT, _TRIAL_WIDTH, 3, 3) if is_conv else (_TRIAL_OUT, _TRIAL_WIDTH)
    weight = torch.randn(shape, generator=generator).to(device)
    bias = torch.randn(_TRIAL_OUT, generator=generator).to(device)
    size = (2, _TRIAL_WIDTH, _TRIAL_SIDE, _TRIAL_SIDE) if is_conv else (_TRIAL_ROWS, _TRIAL_WIDTH)
    x = torch.randn(size, generator=generator).to(device)
    span = ActivationRange(-0.5 * _TRIAL_MAGNITUDE, _TRIAL_MAGNITUDE)
    calibration = LayerCalibration(_TRIAL_MAGNITUDE, {8: AffineQuantizer.spanning(span, 8)})
    return LayerWeights(weight, bias, padding=(1, 1) if is_conv else (0, 0)), calibration, x
