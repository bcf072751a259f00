"""The permutation test: the discrepancy among those of relabelled samples.

Letters: N and M samples, n = N + M, F frequencies, B permutations, S blocks of frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncfd import ops
from ncfd._devices import widest_float
from ncfd.two_sample import _sums
from ncfd.two_sample._arguments import shuffled
from ncfd.two_sample._reasons import QUANTILES, Finding


def permutation(
    x: Tensor, y: Tensor, t: Tensor, blocks: int, B: int, generator: torch.Generator
) -> Finding:
    """Exact test by re-assigning the samples: 0/1 labels times the features.

    With features less their pooled mean p, the labelled rows sum to S and all to R, which is
    rounding. So one sum gives both sides, ``φ_1 = p + S/m``, ``φ_2 = p + (R - S)/(n-m)``, without
    cancellation.
    """
    z = torch.cat([x, y])
    n, F = len(z), len(t)
    small = min(len(x), len(y))  # rows that get label 1: the smaller side
    pooled = _sums.phi(z, t)
    parts = torch.arange(F, device="cpu").tensor_split(blocks)
    slices = [slice(int(i[0]), int(i[-1]) + 1) for i in parts]
    # The observed one comes first.
    values = torch.empty(B + 1, blocks, dtype=torch.float64, device="cpu")
    total, squares = (torch.zeros(F, dtype=torch.float64, device="cpu") for _ in range(2))
    observed = total
    at_once = max(1, min(B + 1, _sums.BLOCK_BYTES // n))
    for first in range(0, B + 1, at_once):
        last = min(first + at_once, B + 1)
        labels = torch.zeros(last - first, n, dtype=torch.bool, device="cpu")
        if first == 0:
            labels[0] = (torch.arange(n, device="cpu") < len(x)) == (len(x) <= len(y))
        for label in labels[1 if first == 0 else 0 :]:
            label[shuffled(n, generator)[:small]] = True
        found = _discrepancies(z, t, pooled, labels, small).cpu().double()
        for k, part in enumerate(slices):
            values[first:last, k] = found[:, part].mean(1)
        total += found.sum(0)
        squares += found.square().sum(0)
        if first == 0:
            observed = found[0]
    # Standardised with the observed value among the others, so that all B + 1 stay exchangeable.
    spread = values.std(0, correction=0)
    standard = (values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)
    best = standard.amax(1)
    # Permutations that tie with the observed assignment (small or discrete sets) must count, and
    # differ from it by rounding.
    slack = 1e3 * torch.finfo(x.dtype).eps * max(1.0, best[0].abs().item())
    mean = total / (B + 1)
    deviation = (squares / (B + 1) - mean.square()).clamp(min=0).sqrt()
    contributions = (observed - mean) / torch.where(deviation > 0, deviation, 1.0)
    return Finding(
        statistic=best[0].item(),
        pvalue=(1 + int((best[1:] >= best[0] - slack).sum())) / (1 + B),
        null_quantiles={q: best[1:].quantile(q).item() for q in QUANTILES},
        contributions=contributions.to(x),
        expected=0.0,
        block=slices[int(standard[0].argmax())],
    )


def _discrepancies(z: Tensor, t: Tensor, pooled: _sums.Phi, labels: Tensor, small: int) -> Tensor:
    """Unbiased, of the ``small`` labelled rows and the others: labels ``(b, n)`` -> ``(b, F)``."""
    F, rest = len(t), len(z) - small
    sums = _labelled_sums(z, t, pooled, labels)
    others = sums[-1] - sums[:-1]
    one, two = (
        (pooled[0] + part[:, :F] / size, pooled[1] + part[:, F:] / size)
        for part, size in ((sums[:-1], small), (others, rest))
    )
    return _sums.unbiased(one, two, small, rest)


def _labelled_sums(z: Tensor, t: Tensor, pooled: _sums.Phi, labels: Tensor) -> Tensor:
    """Σ over the labelled rows of cos - p and sin - p, and over all: ``(b, n)`` -> (b + 1, 2F)."""
    b, F = len(labels), len(t)
    sums = torch.zeros(b + 1, 2 * F, dtype=widest_float(z.device), device=z.device)
    rows = max(1, _sums.BLOCK_BYTES // (z.element_size() * max(4 * F, b)))
    with torch.autocast(z.device.type, enabled=False):
        for first in range(0, len(z), rows):
            cos, sin = ops.features(z[first : first + rows], t)
            features = torch.cat([cos - pooled[0], sin - pooled[1]], 1)  # (rows, 2F)
            sums[:b] += labels[:, first : first + rows].to(z) @ features
            sums[b] += features.sum(0)
    return sums
