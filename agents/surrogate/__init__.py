"""The Gaussian process that predicts drops, and what looks for plans on it."""
