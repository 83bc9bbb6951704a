"""Profiles and plans of any shape, drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from wattbit.plan import PrecisionPlan
from wattbit.profile import LayerProfile, LayerShape, ModelProfile, PrecisionCost

NAMES = ("fp32", "int8", "int4")
POSITIVE = st.floats(1e-12, 1e3)
COUNT = st.integers(1, 10**9)


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    layers = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    pairs = [f"{a}->{b}" for a in NAMES for b in NAMES if a != b]
    return ModelProfile(
        layers=tuple(_layer(draw, name, index) for index, name in enumerate(layers)),
        precisions=NAMES,
        provenance=draw(st.sampled_from(["measured", "estimated", "modelled"])),
        device=draw(st.text(max_size=8)),
        conversion_j=draw(st.dictionaries(st.sampled_from(pairs), POSITIVE)),
        other_energy_j=draw(st.none() | POSITIVE),
        other_latency_ms=draw(st.none() | POSITIVE),
    )


def _layer(draw: st.DrawFn, name: str, index: int) -> LayerProfile:
    counts = [draw(COUNT) for _ in range(9)]
    shape = LayerShape(name, "linear", *counts, depth=float(index))  # type: ignore[misc]
    supported = ["fp32", *draw(st.sets(st.sampled_from(NAMES[1:])))]
    return LayerProfile(shape, {precision: _cost(draw) for precision in NAMES if precision in supported})


def _cost(draw: st.DrawFn) -> PrecisionCost:
    return PrecisionCost(
        energy_j=draw(POSITIVE),
        energy_rel_std=draw(st.none() | POSITIVE),
        latency_ms=draw(POSITIVE),
        memory_bytes=draw(COUNT),
        sensitivity=draw(POSITIVE),
        sensitivity_std=draw(POSITIVE),
        native=draw(st.booleans()),
    )


@st.composite
def plans(draw: st.DrawFn, profile: ModelProfile) -> PrecisionPlan:
    return PrecisionPlan({layer.name: draw(st.sampled_from(sorted(layer.costs))) for layer in profile.layers})
