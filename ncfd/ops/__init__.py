"""The sums behind every characteristic function: per frequency and group, Σ cos and Σ sin.

A characteristic function is a mean, so everything in the package rests on these two sums and a
weight, and they add: over chunks, groups, batches and processes. This is the one place that takes
the cosine of a phase.
"""

from ncfd.ops._budget import BUDGET
from ncfd.ops._fused import use_triton
from ncfd.ops._pairs import full_precision, kernel_sums
from ncfd.ops._phases import features
from ncfd.ops._rays import gaps_fit, line_gaps, line_sums, ray_sums
from ncfd.ops._sums import Pair, Side, sums, sums_apart, sums_of

__all__ = [
    "BUDGET",
    "Pair",
    "Side",
    "features",
    "full_precision",
    "gaps_fit",
    "kernel_sums",
    "line_gaps",
    "line_sums",
    "ray_sums",
    "sums",
    "sums_apart",
    "sums_of",
    "use_triton",
]
