r"""Where the frequencies come from: ψ, the learned scale mixture, and its siblings.

Every sampler is a module that returns ``(F, D)`` frequencies. The randomness is drawn from an
explicit ``torch.Generator`` or, without one, from the device's default generator; nothing seeds.

The law of the frequencies is the kernel of the squared loss, ``E cos⟨t, x - y⟩ = k(x - y)``:

=====================  ==============================================================
Gaussian               Gaussian kernel, ``exp(-½ |σ δ|²)``
Student-t, ``df``      Matérn kernel of smoothness ``df / 2``
Laplace                rational quadratic kernel, ``1 / (1 + |σ δ|²)``
uniform                product of ``sin(σ δ_d) / (σ δ_d)``
:class:`FrequencySampler`  mixture of Gaussian kernels, with learned widths
:class:`SlicedFrequencies`  mean over directions u of a kernel of ``⟨σ δ, u⟩``
=====================  ==============================================================

Letters: D features, F frequencies, K mixture components.
"""

from ncfd.frequencies._laws import (
    GaussianFrequencies,
    LaplaceFrequencies,
    StudentTFrequencies,
    UniformFrequencies,
)
from ncfd.frequencies._mixture import FrequencySampler
from ncfd.frequencies._sliced import SlicedFrequencies

__all__ = [
    "FrequencySampler",
    "GaussianFrequencies",
    "LaplaceFrequencies",
    "SlicedFrequencies",
    "StudentTFrequencies",
    "UniformFrequencies",
]
