"""Hypothesis profiles and the random generators that the tests draw from."""

import importlib.util
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# "ci" is the same set of examples on every run, so that a red build can be repeated;
# "long" looks for new ones: HYPOTHESIS_PROFILE=long pytest. No deadline in either: the first
# example pays for torch's lazy initialisation.
settings.register_profile("ci", derandomize=True, max_examples=25, deadline=None)
settings.register_profile(
    "long", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# PyTorch's builds for the CPU have no Triton, and the search for docstrings imports every file.
collect_ignore = [] if importlib.util.find_spec("triton") else ["triton_checks.py"]


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of the test's own: no test depends on the order of the others."""
    return torch.Generator().manual_seed(20240229)
