"""Default frequencies: random ones in D dimensions, multiples along directions for χ².

Letters: D features, F frequencies, K directions, n samples of both sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncfd.two_sample._arguments import Options, shuffled

#: Multiples of 1/median distance. Low frequencies see location, high ones shape; the test takes the
#: block where the difference stands out most, which costs little at the others' expense.
SCALES = (1.0, 2.0, 4.0)
#: F, where frequencies are random.
DEFAULT_FREQUENCIES = 384
_MEDIAN_ROWS = 1000


def default_frequencies(
    x: Tensor, y: Tensor, options: Options, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Frequencies ``(F, D)`` for either method, and the number of blocks to judge apart."""
    F, scale = options.num_frequencies, options.scale
    if options.method == "chi2":
        return _sliced_frequencies(x, y, F, scale, generator), 1
    t = _random_frequencies(x, y, F or DEFAULT_FREQUENCIES, scale, generator)
    return t, min(len(SCALES), len(t))


def normal(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal ``(rows, D)``, drawn on the CPU in float64 whatever ``like`` is."""
    shape = rows, like.shape[1]
    draw = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return draw.to(like)


def median_distance(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Median distance of two samples of either set, from a random part of at most 1000 rows."""
    pooled = torch.cat([x, y])
    if len(pooled) > _MEDIAN_ROWS:
        pooled = pooled[shuffled(len(pooled), generator)[:_MEDIAN_ROWS]]
    distance = torch.pdist(pooled)
    median = distance.median().item()
    if median == 0:  # more than half the pairs are ties
        distance = distance[distance > 0]
        median = distance.median().item() if len(distance) else 1.0  # all equal: any scale says so
    return median


def _random_frequencies(
    x: Tensor, y: Tensor, F: int, scale: float | None, generator: torch.Generator
) -> Tensor:
    """Normal frequencies, ``(F, D)``: a block for each of the ``SCALES``, lowest first."""
    unit = scale if scale is not None else 1 / median_distance(x, y, generator)
    # F = 8 -> 3, 3, 2: the sizes that `Tensor.tensor_split` has.
    sizes = [len(part) for part in x.new_empty(F).tensor_split(min(len(SCALES), F))]
    factor = torch.cat([x.new_full((n,), s) for n, s in zip(sizes, SCALES, strict=False)])
    return normal(F, x, generator) * (unit * factor).unsqueeze(1)


def _sliced_frequencies(
    x: Tensor, y: Tensor, F: int | None, scale: float | None, generator: torch.Generator
) -> Tensor:
    """Multiples of 0.4 over half the interquartile range, along directions: ``(F, D)``."""
    D = x.shape[1]
    if D == 1:
        F = F or 2
        direction = x.new_ones(1, 1)
        multiple = torch.arange(1, F + 1, device=x.device)
    else:
        # Whitening 2F features with n samples inflates W by about 2F/n; 48 samples a direction
        # on the smaller side keep that under a tenth, where the correction is reliable.
        K = min(2 * D, 16, max(2, min(len(x), len(y)) // 48)) if F is None else (F + 1) // 2
        F = F or 2 * K
        direction = _orthogonal(K, x, generator).repeat(2, 1)[:F]
        multiple = torch.tensor([1, 2], device=x.device).repeat_interleave(K)[:F]
    step = 0.4 * multiple.to(x).unsqueeze(1)
    if scale is not None:
        return direction * step * scale
    projected = torch.cat([x, y]) @ direction.T  # (n, F)
    low, high = (_quantile(projected, q) for q in (0.25, 0.75))
    half_range = 0.5 * (high - low)
    # More than half the samples tied along a direction: a standard deviation instead (times what
    # it is for a normal); and if all are, any scale says so.
    half_range = torch.where(half_range > 0, half_range, 0.6745 * _robust_deviation(projected))
    half_range = torch.where(half_range > 0, half_range, 1.0)
    return direction * step / half_range.unsqueeze(1)


def _robust_deviation(values: Tensor) -> Tensor:
    """Standard deviation of each column, without what lies ten typical distances off the median."""
    values = values - values.median(0).values
    typical = values.abs().where(values != 0, torch.nan).nanmedian(0).values.nan_to_num()
    return values.clamp(-10 * typical, 10 * typical).std(0)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Linearly interpolated quantile of each column; ``torch.quantile`` stops at 2^24 elements."""
    ordered = values.sort(0).values
    position = q * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _orthogonal(K: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """K random unit vectors, orthogonal in blocks of D."""
    D = like.shape[1]
    blocks = []
    for first in range(0, K, D):
        shape = D, min(D, K - first)
        draw = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        blocks.append(torch.linalg.qr(draw).Q.T)
    return torch.cat(blocks).to(like)
