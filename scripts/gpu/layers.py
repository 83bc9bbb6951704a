"""Single layers: do native kernels give what the emulated ones give, and what do they cost?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.kernel_cases import Case, conv_case, linear_case
from scripts.gpu.gpu_measurer import GpuMeasurer
from scripts.gpu.machine import Machine
from scripts.gpu.record import Section
from wattbit.energy.trial import Work
from wattbit.execution.kernels import find_native, pack
from wattbit.execution.kernels.cuda import CUDA_OPERATIONS
from wattbit.execution.kernels.kernel import NativeKernel
from wattbit.precision import PRECISIONS, Precision

OFFERED = tuple(operation.precision for operation in CUDA_OPERATIONS)
"""The precisions that some GPU runs natively."""
LINEARS = ((768, 3072, 8192), (4096, 4096, 4096), (768, 768, 8192))
"""(in, out, rows): a feed-forward layer, one of a large model, and an attention's projection."""
CONVS = (("conv 3x3", 64, 64, 56, 3, 1), ("conv 3x3", 256, 256, 14, 3, 1), ("conv 1x1", 256, 1024, 14, 1, 1))
"""(kind, channels, out, side, kernel, stride), from ResNet-50."""
ATTENTION = (64, 12, 128, 64)
"""(batch, heads, tokens, width of a head)."""
ATTENTION_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_S = 5.0
"""With less time than this no shape is begun, seconds."""
ODD_LINEARS = ((784, 10, 17), (100, 60, 1), (1536, 384, 33))
"""Shapes that some operations refuse and that others pad."""


def cases(device: torch.device) -> Iterator[Case]:
    """The layers to measure."""
    for width, out, rows in LINEARS:
        yield linear_case(width, out, rows, device)
    for kind, channels, out, side, kernel, stride in CONVS:
        yield conv_case(kind, device, channels, out, side, kernel, stride)


@torch.inference_mode()
def parity(section: Section, machine: Machine) -> None:
    """Every shape at every precision: native or not, and how far native and emulated outputs differ."""
    odd = [linear_case(width, out, rows, machine.device) for width, out, rows in ODD_LINEARS]
    for case in section.within_time([*cases(machine.device), *odd], 3.0, lambda case: case.name):
        for name in OFFERED:
            row = {"layer": case.name, "batch": case.batch, "precision": name}
            section.attempt(row, partial(_parity, case, PRECISIONS[name]))


def _parity(case: Case, precision: Precision) -> dict[str, Any]:
    native = find_native(case.layer, precision)
    if native is None:
        return {"kernel": None, "runs": "emulated"}
    calibration = case.calibration()
    found = native.pack(case.layer, precision, calibration)(case.x)
    expected = pack(case.layer, precision, calibration, native=False).run(case.x)
    largest_found, largest_expected = found.flatten(1).argmax(1), expected.flatten(1).argmax(1)
    return {
        "kernel": native.name,
        "runs": "native",
        "relative_error": float((found - expected).norm() / expected.norm()),
        "max_abs_difference": float((found - expected).abs().max()),
        "argmax_agreement": float((largest_found == largest_expected).double().mean()),
    }


@torch.inference_mode()
def costs(section: Section, machine: Machine, measurer: GpuMeasurer) -> None:
    """Time and energy of every shape at every native precision, beside float32 without TF32."""
    for case in section.within_time(cases(machine.device), LEAST_S, lambda case: case.name):
        works: dict[str, Work] = {"fp32": case.reference}
        for precision in PRECISIONS.values():
            native = find_native(case.layer, precision)
            if native is not None:
                works[precision.name] = _packed(native, case, precision)
        facts = {"layer": case.name, "batch": case.batch, "gmacs": case.macs / 1e9}
        _add_rows(section, facts, measurer, works)
    _attention_costs(section, machine, measurer)


def _packed(native: NativeKernel, case: Case, precision: Precision) -> Work:
    kernel = native.pack(case.layer, precision, case.calibration())
    return lambda: kernel(case.x)


def _attention_costs(section: Section, machine: Machine, measurer: GpuMeasurer) -> None:
    """Softmax attention itself: no plan switches it, but it is what plans leave in float32."""
    batch, heads, tokens, width = ATTENTION
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(ATTENTION, generator=generator).to(machine.device) for _ in range(3))

    def attend(dtype: torch.dtype) -> Tensor:
        mixed = F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype))
        return mixed.to(torch.float32)

    name = f"attention {heads}x{tokens}x{width}"
    for works in section.within_time(
        [{precision: partial(attend, dtype) for precision, dtype in ATTENTION_FORMATS.items()}],
        LEAST_S,
        lambda works: name,
    ):
        _add_rows(section, {"layer": name, "batch": batch}, measurer, works)


def _add_rows(
    section: Section, facts: dict[str, Any], measurer: GpuMeasurer, works: Mapping[str, Work]
) -> None:
    for precision, row in measurer.rotate(works, section.left_s).items():
        section.add({**facts, "precision": precision, **row})
