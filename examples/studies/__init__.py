"""Comparisons of whole runs of `distill_cifar.py`: one command a study. See `run.py`."""
