"""Models and data to tune, one file a workload."""
