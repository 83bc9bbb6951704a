"""The profile of a network that does not exist: plausible layer shapes, and what they cost on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wattbit.energy.device_model import DeviceModel, MemoryLevel, stored_weight_bytes
from wattbit.precision import Precision
from wattbit.profile import LayerKind, LayerProfile, LayerShape, ModelProfile, PrecisionCost

# The figures of conf/energy/device/edge_7nm.yaml, which names their sources; all data in one memory.
_MAC_PJ = {
    "fp32": 1.69, "tf32": 0.722625, "bf16": 0.59, "fp16": 0.72, "fp8_e4m3": 0.283,
    "int8": 0.1, "int6": 0.069375, "int4": 0.0475, "int3": 0.03984375, "int2": 0.034375,
}  # fmt: skip
_DEVICE = DeviceModel(
    name="synthetic",
    source="edge_7nm with one memory of 1 MB",
    mac_pj=_MAC_PJ,
    memory=(MemoryLevel("sram", None, 1.75, 1.28e11),),
    peak_macs_per_s={name: 4.096e11 / pj for name, pj in _MAC_PJ.items()},
    conversion_pj={"float": 0.03, "int": 0.4, "block": 0.43, "widen": 0.24},
)


def draw_profile(
    rng: np.random.Generator, precisions: Sequence[Precision], sensitivity: NDArray[np.float64]
) -> ModelProfile:
    """Draw the profile of a network.

    Args:
        rng: Where chance comes from.
        precisions: The precisions, the reference first.
        sensitivity: Sensitivity of each layer at each precision, (layers, precisions), nats.

    Raises:
        PrecisionError: If no figure of a precision's energy is at hand.
    """
    layers = len(sensitivity)
    return ModelProfile(
        layers=tuple(_layer(_shape(rng, i, layers), precisions, sensitivity[i]) for i in range(layers)),
        precisions=tuple(p.name for p in precisions),
        provenance=_DEVICE.provenance,
        device=_DEVICE.device,
        conversion_j={
            f"{a.name}->{b.name}": _DEVICE.conversion_j_per_element(a, b)
            for a in precisions
            for b in precisions
            if a.compute != b.compute
        },
        other_energy_j=None,
        other_latency_ms=None,
    )


def _layer(
    shape: LayerShape, precisions: Sequence[Precision], sensitivity: NDArray[np.float64]
) -> LayerProfile:
    costs = {
        p.name: PrecisionCost(
            energy_j=_DEVICE.layer_energy_j(shape, p),
            energy_rel_std=None,
            latency_ms=1e3 * _DEVICE.layer_latency_s(shape, p),
            memory_bytes=math.ceil(stored_weight_bytes(shape, p)),
            sensitivity=nats,
            sensitivity_std=0.1 * nats,
            native=False,
        )
        for p, nats in zip(precisions, sensitivity.tolist(), strict=True)
    }
    return LayerProfile(shape, costs)


def _shape(rng: np.random.Generator, index: int, layers: int) -> LayerShape:
    """A plausible layer of about a million multiply-accumulates; a depthwise one has a tenth."""
    kinds: tuple[LayerKind, ...] = ("conv2d", "depthwise_conv2d", "linear")
    kind = kinds[int(rng.choice(3, p=(0.5, 0.15, 0.35)))]
    depthwise, kernel = kind == "depthwise_conv2d", 1 if kind == "linear" else 3
    inputs = int(2 ** rng.integers(4, 8))
    outputs = inputs if depthwise else int(inputs * 2 ** rng.integers(0, 2))
    weights = kernel**2 * outputs * (1 if depthwise else inputs)
    macs = 1e6 * math.exp(rng.normal(0.0, 0.7)) * (0.1 if depthwise else 1.0)
    positions = max(1, round(macs / weights))
    return LayerShape(
        name=f"layer{index:03d}",
        kind=kind,
        macs=weights * positions,
        weight_elements=weights,
        input_elements=inputs * positions,
        output_elements=outputs * positions,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=kernel,
        stride=1,
        groups=inputs if depthwise else 1,
        depth=index / max(1, layers - 1),
    )
