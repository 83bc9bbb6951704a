"""Energy and time of a layer from a device table, for devices that are not at hand (``modelled``).

Energy of one layer for one sample::

    E = macs * mac_pj[compute]                              multiply and accumulate
      + weight bytes / batch size * pj_per_byte(level_w)    weights are read once a batch
      + input bytes * pj_per_byte(level_i)                  read at the layer's activation format
      + output bytes * pj_per_byte(level_o)                 written at 16 or 32 bits
      + weights / batch size * widen_pj                     weight-only formats: widened as they are read

The form is Horowitz's (ISSCC 2014): operations and memory accesses, each at its own price. Time is a roofline
(Williams et al., CACM 2009): the slowest of the multipliers and each memory level, as if all overlap.

Choices, and why:

- A tensor's memory level is the smallest that holds it *at fp32*, whatever the precision. The level is then
  the same for every precision, so a ratio of energies shows bits and arithmetic and no precision wins by just
  falling into a smaller memory. Narrow formats may do better on a device that packs them closer.
- Outputs are written at 16 bits by every format of 16 bits or fewer: accumulators are wider than operands,
  what lies between layers (residual sums, norms) needs that width, and a layer cannot know what its successor
  wants. fp32 and tf32 write 32.
- Not in the model: control, clocks, leakage, idle power, and the multiply per output that rescales integer
  accumulators (small beside the access that writes it). They compare precisions; they are not a power bill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattbit.errors import ConfigError, PrecisionError
from wattbit.precision import PRECISIONS, Precision
from wattbit.profile import LayerShape, Provenance

_JOULES_PER_PJ = 1e-12
_FP32_BYTES = 4
_TABLE_KEYS = ("name", "source", "mac_pj", "memory", "peak_macs_per_s", "conversion_pj")
_LEVEL_KEYS = ("name", "capacity_bytes", "pj_per_byte", "bandwidth_bytes_per_s")
_FORMATS = tuple(dict.fromkeys(p.compute for p in PRECISIONS.values()))
_CONVERSIONS = ("float", "int", "block", "widen")


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One level of a memory hierarchy.

    Attributes:
        name: Its name, such as ``sram_1mb``.
        capacity_bytes: How much it holds; None for the last level, which holds anything.
        pj_per_byte: Energy to read or write one byte, picojoules.
        bandwidth_bytes_per_s: Bytes per second.
    """

    name: str
    capacity_bytes: int | None
    pj_per_byte: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A device described by a table; see the module for the formulas.

    Attributes:
        name: The table's name.
        source: Where its figures come from.
        mac_pj: Energy of one multiply-accumulate by compute format, picojoules.
        memory: Memory levels, smallest first; the last holds anything.
        peak_macs_per_s: Multiply-accumulates per second by compute format, for the same formats.
        conversion_pj: Energy to bring one value into a format of family ``float``, ``int`` or ``block``, and
            to ``widen`` one stored weight, picojoules.
        resident_weight_bytes: Size at fp32 of all weights that share the memory; weights are then read from
            the level that holds them all. None: each layer's weights are placed on their own, as if every
            layer had such a memory, which understates what weights cost in a large model.

    Raises:
        ConfigError: If a figure is not a positive number, a key is unknown or missing, or levels do not grow.
    """

    name: str
    source: str
    mac_pj: Mapping[str, float]
    memory: tuple[MemoryLevel, ...]
    peak_macs_per_s: Mapping[str, float]
    conversion_pj: Mapping[str, float]
    resident_weight_bytes: int | None = None

    def __post_init__(self) -> None:
        where = f"device table {self.name!r}"
        _require_text(self.name, "device table: name")
        _require_text(self.source, f"{where}: source")
        if not self.mac_pj:
            raise ConfigError(f"{where}: mac_pj has no format; give at least one of {', '.join(_FORMATS)}")
        _require_keys(self.mac_pj, f"{where}: mac_pj", _FORMATS, needed=())
        _require_keys(self.peak_macs_per_s, f"{where}: peak_macs_per_s", tuple(self.mac_pj))
        _require_keys(self.conversion_pj, f"{where}: conversion_pj", _CONVERSIONS)
        for group in ("mac_pj", "peak_macs_per_s", "conversion_pj"):
            for key, value in getattr(self, group).items():
                _require_positive(value, f"{where}: {group}.{key}")
        _require_levels(self.memory, where)
        if self.resident_weight_bytes is not None:
            _require_positive(self.resident_weight_bytes, f"{where}: resident_weight_bytes")

    @classmethod
    def from_table(cls, data: Mapping[str, Any], resident_weight_bytes: int | None = None) -> DeviceModel:
        """Build the model from a parsed table, in which each figure is ``{value: ..., source: ...}``.

        Args:
            data: The table; its keys are the class's attributes, without ``resident_weight_bytes``.
            resident_weight_bytes: See the class.

        Raises:
            ConfigError: If a key is unknown or missing, a figure is not a positive number or has no source.
        """
        _require_mapping(data, "device table")
        where = f"device table {data.get('name')!r}"
        _require_keys(data, where, _TABLE_KEYS)
        levels = data["memory"]
        if not isinstance(levels, Sequence) or isinstance(levels, str):
            raise ConfigError(f"{where}: memory is {levels!r:.60}; give a list of levels, smallest first")
        return cls(
            name=data["name"],
            source=data["source"],
            mac_pj=_values(data, "mac_pj", where),
            memory=tuple(_level(level, f"{where}: memory[{index}]") for index, level in enumerate(levels)),
            peak_macs_per_s=_values(data, "peak_macs_per_s", where),
            conversion_pj=_values(data, "conversion_pj", where),
            resident_weight_bytes=resident_weight_bytes,
        )

    @property
    def device(self) -> str:
        """The table's name."""
        return self.name

    @property
    def provenance(self) -> Provenance:
        """Always ``modelled``."""
        return "modelled"

    def supports(self, p: Precision) -> bool:
        """True if the table has the format in which ``p`` computes."""
        return p.compute in self.mac_pj

    def layer_energy_j(self, shape: LayerShape, p: Precision, batch_size: int = 1) -> float:
        """Energy of one layer for one sample, joules.

        Raises:
            PrecisionError: If the device does not support ``p``.
            ConfigError: If ``batch_size`` is below 1.
        """
        self._require(p)
        energy_pj = shape.macs * self.mac_pj[p.compute]
        energy_pj += sum(size * level.pj_per_byte for level, size in self._traffic(shape, p, batch_size))
        if p.weight_only:
            energy_pj += shape.weight_elements / batch_size * self.conversion_pj["widen"]
        return energy_pj * _JOULES_PER_PJ

    def layer_latency_s(self, shape: LayerShape, p: Precision, batch_size: int = 1) -> float:
        """Time of one layer for one sample, seconds: a lower bound, at which everything overlaps.

        Raises:
            PrecisionError: If the device does not support ``p``.
            ConfigError: If ``batch_size`` is below 1.
        """
        self._require(p)
        busy_s = dict.fromkeys((level.name for level in self.memory), 0.0)
        for level, size in self._traffic(shape, p, batch_size):
            busy_s[level.name] += size / level.bandwidth_bytes_per_s
        return max(shape.macs / self.peak_macs_per_s[p.compute], *busy_s.values())

    def conversion_j_per_element(self, a: Precision, b: Precision) -> float:
        """Energy to bring one activation from a layer at ``a`` into what a layer at ``b`` reads, joules.

        The value is read at the width ``a`` writes, converted, and written at ``b``'s width, both through the
        smallest memory. It is 0 only if both have the same activation format: the producer then scales its
        accumulators straight into it.

        Raises:
            PrecisionError: If the device does not support both.
        """
        self._require(a)
        self._require(b)
        if a.compute == b.compute:  # activations are kept in the format that is computed in
            return 0.0
        family = "float" if b.weight_only else b.family
        moved_bytes = (_output_bits(a) + b.stored_activation_bits) / 8
        return (self.conversion_pj[family] + moved_bytes * self.memory[0].pj_per_byte) * _JOULES_PER_PJ

    def _require(self, p: Precision) -> None:
        if not self.supports(p):
            raise PrecisionError(
                f"device {self.name!r} has no format {p.compute!r}, in which {p.name!r} computes; "
                f"it supports {', '.join(self.mac_pj)}"
            )

    def _traffic(
        self, shape: LayerShape, p: Precision, batch_size: int
    ) -> tuple[tuple[MemoryLevel, float], ...]:
        """Bytes per sample of weights, inputs and outputs, each with the level that they pass through."""
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size!r}: must be at least 1")
        weights_at_fp32 = self.resident_weight_bytes or shape.weight_elements * _FP32_BYTES
        return (
            (self._level(weights_at_fp32), stored_weight_bytes(shape, p) / batch_size),
            (
                self._level(shape.input_elements * _FP32_BYTES),
                shape.input_elements * p.stored_activation_bits / 8,
            ),
            (self._level(shape.output_elements * _FP32_BYTES), shape.output_elements * _output_bits(p) / 8),
        )

    def _level(self, size_bytes: int) -> MemoryLevel:
        return next(level for level in self.memory if size_bytes <= (level.capacity_bytes or math.inf))


def stored_weight_bytes(shape: LayerShape, p: Precision) -> float:
    """Bytes of a layer's weights at ``p``, with block scales or, for integers, one fp32 scale a channel."""
    channel_scales = shape.out_channels * _FP32_BYTES if p.family == "int" else 0
    return shape.weight_elements * p.stored_weight_bits / 8 + channel_scales


def _output_bits(p: Precision) -> int:
    return 16 if p.activation_bits <= 16 else 32


def _values(data: Mapping[str, Any], group: str, where: str) -> dict[str, Any]:
    figures = data[group]
    _require_mapping(figures, f"{where}: {group}")
    return {key: _value(figure, f"{where}: {group}.{key}") for key, figure in figures.items()}


def _level(data: Mapping[str, Any], where: str) -> MemoryLevel:
    _require_mapping(data, where)
    _require_keys(data, where, _LEVEL_KEYS)
    figures = {key: _value(data[key], f"{where}.{key}") for key in _LEVEL_KEYS[1:]}
    return MemoryLevel(name=data["name"], **figures)


def _value(figure: object, where: str) -> Any:
    if not isinstance(figure, Mapping):
        raise ConfigError(f"{where} is {figure!r}; write {{value: ..., source: ...}}")
    _require_keys(figure, where, ("value", "source"))
    _require_text(figure["source"], f"{where}.source")
    return figure["value"]


def _require_mapping(data: object, where: str) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r:.60}; give a mapping with its keys")


def _require_keys(
    data: Mapping[str, object], where: str, known: Sequence[str], needed: Sequence[str] | None = None
) -> None:
    unknown = [key for key in data if key not in known]
    missing = [key for key in (known if needed is None else needed) if key not in data]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; choose from {', '.join(known)}")
    if missing:
        raise ConfigError(f"{where}: key {missing[0]!r} is missing; give {', '.join(known)}")


def _require_text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} is {value!r}; give a non-empty text")


def _require_positive(value: object, where: str) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"{where} is {value!r}; must be a finite number above 0, such as 0.21 or 1.0e+12")


def _require_levels(levels: Sequence[MemoryLevel], where: str) -> None:
    if not levels or levels[-1].capacity_bytes is not None:
        raise ConfigError(
            f"{where}: the last memory level must hold anything; set its capacity_bytes to null"
        )
    for index, level in enumerate(levels):
        here = f"{where}: memory[{index}]"
        _require_text(level.name, f"{here}.name")
        _require_positive(level.pj_per_byte, f"{here}.pj_per_byte")
        _require_positive(level.bandwidth_bytes_per_s, f"{here}.bandwidth_bytes_per_s")
        if index < len(levels) - 1:
            _require_positive(level.capacity_bytes, f"{here}.capacity_bytes")
    names = [level.name for level in levels]
    capacities = [level.capacity_bytes or 0 for level in levels[:-1]]
    if len(set(names)) < len(names) or sorted(set(capacities)) != capacities:
        raise ConfigError(
            f"{where}: memory levels {names} must differ in name and grow in capacity, smallest first"
        )
