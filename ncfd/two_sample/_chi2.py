"""The χ² test: the differences of cosines and sines, whitened.

Letters: N and M samples, n = N + M, D features, F frequencies.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ncfd.two_sample._reasons import QUANTILES, Finding
from ncfd.two_sample._sums import moments, pairs_of


def chi2(x: Tensor, y: Tensor, t: Tensor) -> Finding:
    """The whitened statistic and its limit."""
    N, M, F, D = len(x), len(y), len(t), x.shape[1]
    n = N + M
    if n <= 2 * F + 3:
        raise ValueError(
            f'method="chi2" with F = {F} frequencies needs more than 2F + 3 = {2 * F + 3} samples '
            f'in both sets, got {n}; use fewer frequencies or method="permutation"'
        )
    (mean_x, cov_x), (mean_y, cov_y) = moments(x, t), moments(y, t)
    gap = (mean_x - mean_y).cpu()
    covariance = (cov_x * (n / N) + cov_y * (n / M)).cpu()  # of √n gap, (2F, 2F)
    values, axes = torch.linalg.eigh(covariance)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    rank = int(kept.sum())
    if rank < 2 * F:
        warnings.warn(
            f"the covariance of the {2 * F} features has rank {rank}: samples are discrete or "
            "frequencies redundant, and differences outside its range go unseen; use other "
            'frequencies or method="permutation"',
            RuntimeWarning,
            stacklevel=3,
        )
    along = axes.T @ gap
    statistic = n * (along[kept].square() / values[kept]).sum().item()
    if D > 1:
        statistic *= (n - 2 * F - 3) / (n - 2)
    elif max(N, M) < 25:
        # Epps & Singleton's fit of the size in small samples.
        statistic /= 1 + n**-0.45 + 10.1 * (N**-1.7 + M**-1.7)
    pair, own = pairs_of(gap, covariance)
    contributions = n * (pair.mT @ torch.linalg.pinv(own, hermitian=True) @ pair).flatten()
    return Finding(
        statistic=statistic,
        pvalue=_tail(statistic, rank),
        null_quantiles={q: _quantile(q, rank) for q in QUANTILES},
        contributions=contributions.to(x),
        expected=2.0,
        block=slice(0, F),
        degrees_of_freedom=rank,
    )


def _tail(value: float, degrees: int) -> float:
    """Probability that χ² exceeds ``value``."""
    if degrees == 0:
        return 1.0
    half = torch.tensor([0.5 * degrees, 0.5 * value], dtype=torch.float64, device="cpu")
    return float(torch.special.gammaincc(half[0], half[1]))


def _quantile(level: float, degrees: int) -> float:
    low, high = 0.0, 10.0 * degrees + 100.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _tail(middle, degrees) > 1 - level:
            low = middle
        else:
            high = middle
    return low
