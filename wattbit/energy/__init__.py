"""Energy meters behind one protocol, each figure with its provenance."""
