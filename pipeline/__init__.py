"""The stages of train.py and evaluate.py."""
