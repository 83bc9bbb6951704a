"""From paired outcomes to verdicts: tests, bounds, judgements, certificates."""
