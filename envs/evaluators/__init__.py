"""How plans are run for the environments: here, in worker processes, or not at all."""
