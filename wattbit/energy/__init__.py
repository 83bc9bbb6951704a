"""Energy meters behind one protocol, each figure with its provenance."""

from wattbit.energy.meter import Energy, EnergyMeter, Provenance, Window

__all__ = ["Energy", "EnergyMeter", "Provenance", "Window"]
