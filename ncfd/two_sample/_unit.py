"""The samples in a unit of their own, so that neither magnitude nor one absurd value matters.

Letters: N and M samples, D features, F frequencies, k the exponent of the unit 2^k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncfd._devices import widest_float


def in_own_unit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """Both sides less their common center, over 2^k, and k.

    A common shift turns both φ alike and changes nothing, but small phases are exact phases. A
    power of two changes no digit, but squares of distances neither overflow nor vanish. Center and
    unit are medians: a mean goes wherever one absurd value pulls it, and rounds away all others.
    """
    k = 0
    largest = max(side.abs().max().item() for side in (x, y))
    if largest > torch.finfo(x.dtype).max / 4:  # differences would overflow
        x, y, k = x / 4, y / 4, 2
    center = torch.cat([x, y]).median(0).values
    x, y = x - center, y - center
    size = torch.cat([side.abs().amax(1) for side in (x, y)])
    size = size[size > 0]  # tied rows say nothing of the unit
    own = math.frexp(size.median().item())[1] if len(size) else 0
    # Phases of a value this far out are noise; but they should be numbers.
    limit = torch.finfo(x.dtype).max ** 0.75
    x, y = (times_power(side, -own).clamp(-limit, limit) for side in (x, y))
    return x, y, k + own


def times_power(value: Tensor, k: int) -> Tensor:
    """``value · 2^k``, in two steps: 2^k alone may be beyond the dtype."""
    half = k // 2
    return value * 2.0**half * 2.0 ** (k - half)


def in_callers_unit(t: Tensor, k: int) -> Tensor:
    """Frequencies for samples in the unit 2^k as those for the caller's.

    In float64 where float32 does not hold them.
    """
    back = times_power(t, -k)
    exact = torch.equal(times_power(back, k), t)
    return back if exact else times_power(t.to(widest_float(t.device)), -k)
