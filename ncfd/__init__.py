"""Compare and match distributions through their characteristic functions."""

from ncfd import distributions, functional
from ncfd.diagnostics import FrequencyReport, frequency_report
from ncfd.estimator import CharacteristicFunction
from ncfd.frequencies import (
    FrequencySampler,
    GaussianFrequencies,
    LaplaceFrequencies,
    SlicedFrequencies,
    StudentTFrequencies,
    UniformFrequencies,
)
from ncfd.loss import NCFDLoss
from ncfd.sigreg import SIGReg
from ncfd.two_sample import TwoSampleTestResult, two_sample_test

__version__ = "0.1.0"

__all__ = [
    "CharacteristicFunction",
    "FrequencyReport",
    "FrequencySampler",
    "GaussianFrequencies",
    "LaplaceFrequencies",
    "NCFDLoss",
    "SIGReg",
    "SlicedFrequencies",
    "StudentTFrequencies",
    "TwoSampleTestResult",
    "UniformFrequencies",
    "__version__",
    "distributions",
    "frequency_report",
    "functional",
    "two_sample_test",
]
