"""Search methods: PPO and the baselines it must beat."""
