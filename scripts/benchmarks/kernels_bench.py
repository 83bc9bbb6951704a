"""Native kernels against the float32 reference, on the CPU: time, joules, roofline share, agreement.

Tables: ``layers``, single layers by type and shape, side by side with torch's float32; ``encoder``, MiniLM-L6
end to end; ``agreement``, predictions of whole models, native against emulated, on real data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scripts.benchmarks import Benchmark, Row, TableValue
from scripts.benchmarks.energy_columns import energy_columns, find_counter
from scripts.benchmarks.kernel_cases import Case, layer_cases
from scripts.benchmarks.kernel_models import agreement_rows, encoder_rows
from scripts.benchmarks.roofline import Roofline, measured_roofline
from scripts.benchmarks.timing import compare_times
from wattbit.energy.meter import EnergyMeter
from wattbit.energy.time_power import cpu_name
from wattbit.execution.kernels import find_native, pack
from wattbit.execution.kernels.kernel import NativeKernel
from wattbit.precision import PRECISIONS, Precision

LINEAR, CONV = "linear 768->3072", "conv 64->64 3x3 28x28"
"""The layers whose speed-ups are figures."""


def run() -> Benchmark:
    """Measure on the CPU, on one thread."""
    roofline, counter = measured_roofline(), find_counter()
    layers = [row for case in layer_cases() for row in layer_rows(case, roofline, counter)]
    encoders, agreements = encoder_rows(counter), agreement_rows()
    rows = (*roofline.rows(), *layers, *encoders, *agreements)
    return Benchmark("kernels", f"cpu: {cpu_name()}", figures(rows), rows)


def figures(rows: tuple[Row, ...]) -> dict[str, float]:
    """The figures of the benchmark; one for which nothing native ran is left out."""
    found: dict[str, float] = {}
    for row in rows:
        if row.get("precision") != "int8" or "speedup" not in row:
            continue
        for name, what in (("linear_int8_speedup", LINEAR), ("conv_int8_speedup", CONV)):
            if row.get("layer") == what:
                found.setdefault(name, _number(row["speedup"]))
        if row["table"] == "encoder":
            found.setdefault("encoder_int8_speedup", _number(row["speedup"]))
    agreements = [_number(row["agreement"]) for row in rows if row["table"] == "agreement"]
    if agreements:
        found["agreement_min"] = min(agreements)
    return found


def layer_rows(case: Case, roofline: Roofline, counter: EnergyMeter | None) -> Iterator[Row]:
    """One row for each precision that this device runs ``case`` at natively."""
    for precision in PRECISIONS.values():
        native = find_native(case.layer, precision)
        if native is not None:
            yield layer_row(case, precision, native, roofline, counter)


@torch.inference_mode()
def layer_row(
    case: Case,
    precision: Precision,
    native: NativeKernel,
    roofline: Roofline,
    counter: EnergyMeter | None,
    *,
    window_s: float = 0.02,
    trials: int = 15,
) -> Row:
    """One layer at one precision against the reference, and its output against the emulated kernel's."""
    calibration = case.calibration()
    kernel = native.pack(case.layer, precision, calibration)
    emulated = pack(case.layer, precision, calibration, native=False).run
    found, expected = kernel(case.x), emulated(case.x)

    def candidate() -> Tensor:
        return kernel(case.x)

    timing = compare_times(case.reference, candidate, window_s=window_s, trials=trials)
    return {
        "table": "layers",
        "layer": case.name,
        "batch": case.batch,
        "precision": precision.name,
        "kernel": native.name,
        "reference_ms": timing.reference_s * 1e3,
        "native_ms": timing.candidate_s * 1e3,
        "speedup": timing.speedup,
        "spread": timing.spread,
        "roof_reference": roofline.share(case, "fp32", timing.reference_s),
        "roof_native": roofline.share(case, precision.compute, timing.candidate_s),
        "relative_error": float((found - expected).norm() / expected.norm()),
        **energy_columns(counter, case.reference, candidate),
    }


def _number(value: TableValue) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
