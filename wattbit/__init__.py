"""wattbit: run each layer of a network at the precision it needs, and no more."""

__version__ = "0.1.0"
