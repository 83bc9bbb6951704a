"""The sections of `scripts.gpu_report`, and what they share. Needs torch, numpy and nvidia-ml-py only."""
