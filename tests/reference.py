"""What the package should compute, written as slowly and as plainly as possible.

Complex128 loops over numpy arrays, one sample and one frequency at a time, and closed forms.
Nothing here knows the package under test: agreement is evidence only if the two share no code.

Letters: N, M samples, D features, F frequencies, G groups, K mixture components.
"""

from __future__ import annotations

import cmath
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]


def as_array(values: ArrayLike) -> Real:
    """Float64 copy of a tensor, array or list; half tensors go through float64 exactly."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _complex128(values: ArrayLike) -> Complex:
    return np.asarray(values, dtype=np.complex128)


def _weights(weights: ArrayLike | None, count: int) -> Real:
    """Weights that sum to one."""
    w = np.ones(count) if weights is None else as_array(weights)
    # `fsum` rounds once, so the normalisation adds no error of its own.
    return w / math.fsum(w)


def characteristic_function(
    x: ArrayLike, t: ArrayLike, weights: ArrayLike | None = None
) -> Complex:
    """``sum_n w_n exp(i <t_f, x_n>) / sum_n w_n`` for ``x`` (N, D) and ``t`` (F, D): (F,)."""
    x, t = as_array(x), as_array(t)
    w = _weights(weights, len(x))
    phi = np.zeros(len(t), dtype=np.complex128)
    for f in range(len(t)):
        for n in range(len(x)):
            phase = sum(float(t[f, d]) * float(x[n, d]) for d in range(x.shape[1]))
            phi[f] += w[n] * cmath.exp(1j * phase)
    return phi


def present_groups(
    groups: ArrayLike, num_groups: int, weights: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which groups have a sample of positive weight: (G,)."""
    labels = np.asarray(groups)
    w = np.ones(len(labels)) if weights is None else as_array(weights)
    return np.array([w[labels == g].sum() > 0 for g in range(num_groups)])


def grouped_characteristic_function(
    x: ArrayLike,
    t: ArrayLike,
    groups: ArrayLike,
    num_groups: int,
    weights: ArrayLike | None = None,
) -> Complex:
    """The function of each group on its own; zeros for a group that is not there: (G, F)."""
    x, labels = as_array(x), np.asarray(groups)
    w = np.ones(len(x)) if weights is None else as_array(weights)
    phi = np.zeros((num_groups, len(as_array(t))), dtype=np.complex128)
    for g in np.flatnonzero(present_groups(labels, num_groups, w)):
        phi[g] = characteristic_function(x[labels == g], t, w[labels == g])
    return phi


def amplitude_term(phi_x: Complex, phi_y: Complex) -> Real:
    """``(|φ_x| - |φ_y|)²``, factored like ``a² - b² = (a - b)(a + b)``, part by part.

    The moduli are rounded, so that their difference would lose the digits of a small gap.
    """
    a, b = _complex128(phi_x), _complex128(phi_y)
    difference = (a.real - b.real) * (a.real + b.real) + (a.imag - b.imag) * (a.imag + b.imag)
    total = np.abs(a) + np.abs(b)
    return np.divide(difference, total, out=np.zeros_like(total), where=total > 0) ** 2


def phase_term(phi_x: Complex, phi_y: Complex) -> Real:
    """``2 |φ_x| |φ_y| (1 - cos(a_x - a_y))``, as ``4 |φ_x| |φ_y| sin²`` of half the gap.

    The half angle keeps every digit of a small gap, where ``1 - cos`` keeps half of them.
    """
    a, b = _complex128(phi_x), _complex128(phi_y)
    # Im(a conj b) from differences: exact for neighbours, where the products would cancel.
    cross = (a.imag - b.imag) * b.real - (a.real - b.real) * b.imag
    dot = a.real * b.real + a.imag * b.imag
    gap = np.arctan2(cross, dot)
    return 4 * np.abs(a) * np.abs(b) * np.sin(gap / 2) ** 2


def discrepancy(phi_x: Complex, phi_y: Complex, alpha: float = 0.5) -> Real:
    """``Chf_α = α · amplitude + (1 - α) · phase``, per frequency."""
    return alpha * amplitude_term(phi_x, phi_y) + (1 - alpha) * phase_term(phi_x, phi_y)


def _mean_cosine_of_pairs(x: Real, y: Real, t: Real, w: Real, v: Real, *, same: bool) -> Real:
    """Weighted mean of ``cos <t, x_i - y_j>`` over pairs; ``same`` leaves out i = j: (F,)."""
    total, mass = np.zeros(len(t)), 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            if same and i == j:
                continue
            total += w[i] * v[j] * np.cos(t @ (x[i] - y[j]))
            mass += w[i] * v[j]
    return total / mass


def unbiased_discrepancy(
    x: ArrayLike,
    y: ArrayLike,
    t: ArrayLike,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
) -> Real:
    """The U-statistic of ``½ |φ_x - φ_y|²`` by explicit pairs of different samples: (F,).

    ``|φ|²`` is the mean of ``cos <t, x - x'>`` over independent x, x'; a pair made of one sample
    twice is not independent, and leaving it out is the whole correction. A complex ``x`` is a
    known φ: it has no samples, hence nothing to correct.
    """
    y, t = as_array(y), as_array(t)
    v = _weights(y_weights, len(y))
    yy = _mean_cosine_of_pairs(y, y, t, v, v, same=True)
    if hasattr(x, "is_complex") and x.is_complex():
        x = x.detach().cpu().numpy()
    if np.iscomplexobj(x):
        phi = _complex128(x)
        cross = (phi * np.conj(characteristic_function(y, t, v))).real
        return 0.5 * (np.abs(phi) ** 2 + yy - 2 * cross)
    x = as_array(x)
    w = _weights(x_weights, len(x))
    xx = _mean_cosine_of_pairs(x, x, t, w, w, same=True)
    xy = _mean_cosine_of_pairs(x, y, t, w, v, same=False)
    return 0.5 * (xx + yy - 2 * xy)


def ncfd_loss(
    x: ArrayLike,
    y: ArrayLike,
    t: ArrayLike,
    *,
    alpha: float = 0.5,
    squared: bool = False,
    unbiased: bool = False,
    reduction: str = "mean",
    x_groups: ArrayLike | None = None,
    y_groups: ArrayLike | None = None,
    num_groups: int | None = None,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
) -> Real:
    """The loss, one group after the other; a plain problem is one group."""
    x, y, t = as_array(x), as_array(y), as_array(t)
    w = np.ones(len(x)) if x_weights is None else as_array(x_weights)
    v = np.ones(len(y)) if y_weights is None else as_array(y_weights)
    grouped = num_groups is not None
    labels_x = np.asarray(x_groups) if grouped else np.zeros(len(x), dtype=int)
    labels_y = np.asarray(y_groups) if grouped else np.zeros(len(y), dtype=int)
    count = num_groups if num_groups is not None else 1
    both = present_groups(labels_x, count, w) & present_groups(labels_y, count, v)
    values = np.zeros((count, len(t)))
    for g in np.flatnonzero(both):
        i, j = labels_x == g, labels_y == g
        if unbiased:
            values[g] = unbiased_discrepancy(x[i], y[j], t, w[i], v[j])
        else:
            phi_x = characteristic_function(x[i], t, w[i])
            phi_y = characteristic_function(y[j], t, v[j])
            values[g] = discrepancy(phi_x, phi_y, alpha)
            if not squared:
                values[g] = np.sqrt(values[g])
    if reduction == "none":
        return values if grouped else values[0]
    return values[both].mean() if reduction == "mean" else values[both].sum()


def gaussian_kernel_loss(
    x: ArrayLike,
    y: ArrayLike,
    scale: ArrayLike = 1.0,
    *,
    unbiased: bool = False,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
) -> float:
    """``E_t ½ |φ_x(t) - φ_y(t)|²`` for ``t ~ N(0, diag(scale²))``, without a single frequency.

    ``E cos <t, d> = exp(-½ Σ_k scale_k² d_k²)``, so the loss is half the squared maximum mean
    discrepancy of a Gaussian kernel. ``scale`` of shape (K, D) is the equal mixture of K normals,
    whose kernel is the mean of theirs.
    """
    x, y = as_array(x), as_array(y)
    w, v = _weights(x_weights, len(x)), _weights(y_weights, len(y))
    scales = np.atleast_2d(
        np.broadcast_to(as_array(scale), x.shape[1:]) if np.ndim(scale) < 2 else as_array(scale)
    )

    def kernel(a: Real, b: Real) -> float:
        return float(np.mean([math.exp(-0.5 * float(((s * (a - b)) ** 2).sum())) for s in scales]))

    def mean_over_pairs(a: Real, b: Real, p: Real, q: Real, same: bool) -> float:
        total = mass = 0.0
        for i in range(len(a)):
            for j in range(len(b)):
                if not (same and unbiased and i == j):
                    total += p[i] * q[j] * kernel(a[i], b[j])
                    mass += p[i] * q[j]
        return total / mass

    xx = mean_over_pairs(x, x, w, w, same=True)
    yy = mean_over_pairs(y, y, v, v, same=True)
    xy = mean_over_pairs(x, y, w, v, same=False)
    return 0.5 * (xx + yy - 2 * xy)
