"""The vocabulary of numeric formats.

A `Precision` is a value that says how many bits a layer's weights and activations have and in which format
its multiply-accumulates run. How numbers are rounded is in `wattbit.numerics`; what a format costs is in
`wattbit.energy`. This module needs neither torch nor numpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from wattbit.errors import PrecisionError

Family = Literal["float", "int", "block"]


@dataclass(frozen=True, slots=True)
class Precision:
    """One numeric format a layer can compute in.

    Attributes:
        name: The name used in plans, configs and tables.
        family: ``float`` (each value has its own exponent), ``int`` (one scale per output channel of the
            weight and one per activation tensor) or ``block`` (small floats that share a scale per block).
        weight_bits: Bits of one stored weight, without shared scales.
        activation_bits: Bits of one stored input activation, without shared scales.
        compute: The format in which multiplications run; the key into a device's energy table.
        block_size: Number of values that share a scale; 0 if scales are per channel or per tensor.
        scale_bits: Bits of one shared block scale.
    """

    name: str
    family: Family
    weight_bits: int
    activation_bits: int
    compute: str
    block_size: int = 0
    scale_bits: int = 0

    @property
    def weight_only(self) -> bool:
        """True if activations keep more bits than weights, and compute runs in the activations' format."""
        return self.weight_bits < self.activation_bits

    @property
    def scale_bits_per_value(self) -> float:
        """The share of a block scale that each value carries, in bits."""
        return self.scale_bits / self.block_size if self.block_size else 0.0

    @property
    def stored_weight_bits(self) -> float:
        """Bits of memory per weight, block scales included."""
        return self.weight_bits + self.scale_bits_per_value

    @property
    def stored_activation_bits(self) -> float:
        """Bits of memory per input activation, block scales included."""
        return self.activation_bits + (0.0 if self.weight_only else self.scale_bits_per_value)


_TABLE = (
    Precision("fp32", "float", 32, 32, "fp32"),
    Precision("tf32", "float", 32, 32, "tf32"),
    Precision("bf16", "float", 16, 16, "bf16"),
    Precision("fp16", "float", 16, 16, "fp16"),
    Precision("fp8_e4m3", "float", 8, 8, "fp8_e4m3"),
    Precision("int8", "int", 8, 8, "int8"),
    Precision("int6", "int", 6, 6, "int6"),
    Precision("int4", "int", 4, 4, "int4"),
    Precision("int3", "int", 3, 3, "int3"),
    Precision("int2", "int", 2, 2, "int2"),
    # OCP Microscaling v1.0: 32 values share one power-of-two scale (E8M0).
    Precision("mxfp4", "block", 4, 4, "mxfp4", block_size=32, scale_bits=8),
    # NVFP4: 16 values share one E4M3 scale, below one fp32 scale per tensor.
    Precision("nvfp4", "block", 4, 4, "nvfp4", block_size=16, scale_bits=8),
    # Weight-only: weights are stored small and widened to bf16, in which the layer computes.
    Precision("int8_wo", "int", 8, 16, "bf16"),
    Precision("int4_wo", "int", 4, 16, "bf16"),
)

PRECISIONS: dict[str, Precision] = {p.name: p for p in _TABLE}
"""Every known precision by name, from the widest to the narrowest, weight-only ones last."""


def precision(name: str) -> Precision:
    """Return the precision called ``name``.

    Raises:
        PrecisionError: If there is none; the message lists the known names.
    """
    try:
        return PRECISIONS[name]
    except (KeyError, TypeError):
        close = difflib.get_close_matches(str(name), PRECISIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PrecisionError(
            f"unknown precision {name!r:.80}: {hint}choose from {', '.join(PRECISIONS)}"
        ) from None


def parse_precisions(names: Iterable[str]) -> tuple[Precision, ...]:
    """Return the precisions called ``names``, in the order given.

    Raises:
        PrecisionError: If a name is unknown or given twice, or none is given.
    """
    if isinstance(names, str):
        raise PrecisionError(f"precisions are {names!r:.80}, one text; give a list of names: [{names:.80}]")
    chosen = tuple(precision(name) for name in names)
    if not chosen:
        raise PrecisionError(f"no precision given: choose at least one from {', '.join(PRECISIONS)}")
    doubled = sorted({p.name for p in chosen if chosen.count(p) > 1})
    if doubled:
        raise PrecisionError(f"precision given twice: {', '.join(doubled)}; name each precision once")
    return chosen
