"""Problems that carry their exact answer and the error that answer may be missed by.

A problem is drawn as a few sizes and scales and a seed, not number by number: the mathematics
cares about how large the phases are, how many samples there are and what is repeated, and these
are what a shrunk example should show.

Tolerances. One rounding has relative size ``eps/2``, half the spacing of the arithmetic. A phase
``<t, x>`` of D products is off by at most ``(D + 1) eps/2 Σ_d |t_d x_d|``, whatever the order of
summation; cos and sin pass that on with slope at most 1 and add a few ``eps`` of their own; a
mean of N of them adds at most ``(N + 1) eps/2``. `phi_tolerance` is the sum of these, doubled for
the two parts of a complex number. It is a worst case: typical errors are a tenth of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import reference
import torch
from hypothesis import strategies as st
from torch import Tensor

ALPHAS = (0.0, 0.3, 0.5, 1.0)
# Phases at the size of 1 rad are the regime of use; the others find overflow, underflow and
# phases that turn many times.
SCALES = (1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0)
FULL_DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.float16, torch.bfloat16)


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The arithmetic promised for these inputs: float64 if any is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def phi_tolerance(x: Tensor, t: Tensor, dtype: torch.dtype) -> float:
    """Bound on ``|φ computed - φ|`` in the arithmetic of ``dtype``; see the module's text."""
    N, D = x.shape[-2:]
    eps = torch.finfo(dtype).eps
    phase = (t.double().abs() @ x.double().abs().transpose(-1, -2)).max().item()
    return eps * ((D + 1) * phase + N + 8)


def discrepancy_tolerance(phi_x: np.ndarray, phi_y: np.ndarray, delta: float) -> np.ndarray:
    """Bound on the error of ``Chf_α`` when each φ is off by ``delta``, for every α in [0, 1].

    The gap ``|φ_x - φ_y|`` and its amplitude part move by at most ``2 delta``, so their squares
    move by at most ``4 gap delta + 4 delta²``; the phase term is their difference, at twice that.
    """
    gap = np.abs(phi_x - phi_y)
    return 8 * delta * (gap + delta)


def root_tolerance(square: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Bound on the error of a root whose argument is off by ``error``.

    Large relative to the value near zero, where the root is steep: the phase term is no
    Lipschitz function of φ where an amplitude vanishes.
    """
    return np.sqrt(square + error) - np.sqrt(np.maximum(square - error, 0))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


seeds = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Problem:
    """Two weighted, labelled sets of samples and frequencies to compare them at.

    The tensors already have the dtype under test, and the exact answers are those of the rounded
    numbers: rounding the input is not an error of the library.
    """

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    t: Tensor  # (F, D)
    x_weights: Tensor  # (N,), with zeros here and there
    y_weights: Tensor  # (M,)
    x_groups: Tensor  # (N,), labels in [0, num_groups)
    y_groups: Tensor  # (M,)
    num_groups: int  # (some of these groups are empty on one side, or on both)
    alpha: float

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.x.dtype, self.y.dtype, self.t.dtype)

    @cached_property
    def delta(self) -> float:
        """What each φ of this problem may be off by, weighted or grouped or not."""
        return max(phi_tolerance(s, self.t, self.dtype) for s in (self.x, self.y))

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"x_weights": self.x_weights, "y_weights": self.y_weights}

    @property
    def groups(self) -> dict[str, Tensor | int]:
        return {
            "x_groups": self.x_groups,
            "y_groups": self.y_groups,
            "num_groups": self.num_groups,
        }

    def loss(self, **options: object) -> tuple[np.ndarray, np.ndarray]:
        """The exact loss per frequency (``reduction="none"``), and its tolerance."""
        options = {"alpha": self.alpha} | options
        exact = reference.ncfd_loss(self.x, self.y, self.t, reduction="none", **options)
        sides = [
            self._phi(self.x, options.get("x_weights"), options.get("x_groups"), options),
            self._phi(self.y, options.get("y_weights"), options.get("y_groups"), options),
        ]
        error = discrepancy_tolerance(*sides, self.delta)
        if options.get("unbiased"):
            # The correction divides by 1 - u >= 1/2 and multiplies |φ|², off by 2 delta, by at
            # most u/(1 - u); both sides together at most double what the plain square is off by.
            # Taking the difference of terms of size 1 costs a few eps more.
            heaviest = max(self._largest_share(options, side) for side in ("x", "y"))
            error = (error + 16 * self.delta) / (1 - heaviest)
        elif not options.get("squared"):
            return exact, root_tolerance(exact**2, error)
        return exact, error

    def _phi(self, samples: Tensor, weights: object, groups: object, options: dict) -> np.ndarray:
        if groups is None:
            return reference.characteristic_function(samples, self.t, weights)
        return reference.grouped_characteristic_function(
            samples, self.t, groups, options["num_groups"], weights
        )

    def _largest_share(self, options: dict, side: str) -> float:
        """``u = Σ w²`` of the normalised weights: the largest over the groups."""
        samples = getattr(self, side)
        w = options.get(f"{side}_weights")
        w = np.ones(len(samples)) if w is None else reference.as_array(w)
        labels = options.get(f"{side}_groups")
        labels = np.zeros(len(samples), dtype=int) if labels is None else np.asarray(labels)
        shares = [w[labels == g] for g in np.unique(labels)]
        return max(float((s**2).sum() / s.sum() ** 2) for s in shares if s.sum() > 0)


@st.composite
def problems(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = FULL_DTYPES,
    scales: tuple[float, ...] = SCALES,
    alphas: tuple[float, ...] = ALPHAS,
    min_samples: int = 1,
    max_samples: int = 9,
) -> Problem:
    """Problems of every shape down to one sample, one feature, one frequency."""
    sizes = st.integers(min_samples, max_samples)
    N, M = draw(sizes), draw(sizes)
    D, F, G = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(seeds)
    scale, shift = draw(st.sampled_from(scales)), draw(st.sampled_from((0.0, 1e-3, 1.0)))
    generator = torch.Generator().manual_seed(seed)

    x = scale * torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = scale * (shift + torch.randn(M, D, generator=generator, dtype=torch.float64))
    t = torch.randn(F, D, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        x[0] = 0
    if draw(st.booleans()):
        t[0] = 0  # φ(0) = 1 on both sides: no discrepancy, and no slope
    if draw(st.booleans()):
        y[: min(N, M)] = x[: min(N, M)]  # shared samples, and equality when N = M
    x_weights = torch.rand(N, generator=generator, dtype=torch.float64) + 0.25
    y_weights = torch.rand(M, generator=generator, dtype=torch.float64) + 0.25
    if N > 2 and draw(st.booleans()):
        x_weights[draw(st.integers(0, N - 1))] = 0
    x_groups = torch.randint(G, (N,), generator=generator)
    y_groups = torch.randint(G, (M,), generator=generator)
    y_groups[0] = x_groups[x_weights.argmax()]  # at least one group on both sides
    return Problem(
        x.to(dtype),
        y.to(dtype),
        t.to(dtype),
        x_weights.to(dtype),
        y_weights.to(dtype),
        x_groups,
        y_groups,
        G,
        draw(st.sampled_from(alphas)),
    )


@st.composite
def phi_pairs(draw: st.DrawFn, max_size: int = 8) -> tuple[Tensor, Tensor]:
    """Two complex128 tensors of numbers in the unit disc, with the awkward ones among them."""
    size, seed = draw(st.integers(1, max_size)), draw(seeds)
    generator = torch.Generator().manual_seed(seed)

    def disc() -> Tensor:
        radius = torch.rand(size, generator=generator, dtype=torch.float64).sqrt()
        angle = 2 * torch.pi * torch.rand(size, generator=generator, dtype=torch.float64)
        return torch.polar(radius, angle)

    a, b = disc(), disc()
    awkward = draw(st.sampled_from(("none", "equal", "opposite", "zero", "one zero", "turned")))
    if awkward == "equal":
        b[0] = a[0]
    elif awkward == "opposite":
        b[0] = -a[0]
    elif awkward == "zero":
        a[0] = b[0] = 0
    elif awkward == "one zero":
        b[0] = 0
    elif awkward == "turned":
        b[0] = 1j * a[0]  # Re φ_x conj φ_y = 0, where the two forms of the phase term meet
    return a, b
