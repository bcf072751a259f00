"""φ of one side, the unbiased discrepancy, and the covariance of the features.

Letters: N and M samples, D features, F frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncfd import ops
from ncfd._devices import widest_float

#: Real and imaginary part, ``(F,)`` each.
Phi = tuple[Tensor, Tensor]

#: Bytes of features, of labels, and of whatever else grows with the samples, held at once.
BLOCK_BYTES = 64 * 2**20


def phi(x: Tensor, t: Tensor) -> Phi:
    """Real and imaginary part of φ̂, ``(F,)`` each."""
    cos_sum, sin_sum = ops.sums(x.unsqueeze(0), t.unsqueeze(0))
    return cos_sum[0, 0] / len(x), sin_sum[0, 0] / len(x)


def phi_of_both(x: Tensor, y: Tensor, t: Tensor) -> tuple[Phi, Phi]:
    """φ̂ of each side, and no phase that overflows."""
    phi_x, phi_y = phi(x, t), phi(y, t)
    if not all(bool(part.isfinite().all()) for part in (*phi_x, *phi_y)):
        raise ValueError(
            "frequencies (or their scale) are too large for these samples: the phases overflow "
            f"{x.dtype}"
        )
    return phi_x, phi_y


def unbiased(phi_x: Phi, phi_y: Phi, N: int, M: int) -> Tensor:
    """``½|φx - φy|²`` less its bias ``½(1-|φx|²)/(N-1) + ½(1-|φy|²)/(M-1)``, per frequency."""
    value = (phi_x[0] - phi_y[0]).square() + (phi_x[1] - phi_y[1]).square()
    for part, size in ((phi_x, N), (phi_y, M)):
        value = value - (1 - part[0].square() - part[1].square()) / (size - 1)
    return 0.5 * value


def moments(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(2F,)`` and covariance ``(2F, 2F)`` (divided by N) of cos and sin at ``t``."""
    F = len(t)
    wide = widest_float(x.device)
    x, t = x.to(wide), t.to(wide)
    mean = torch.cat(phi(x, t))
    square = mean.new_zeros(2 * F, 2 * F)
    rows = max(1, BLOCK_BYTES // (4 * F * x.element_size()))
    for first in range(0, len(x), rows):
        features = torch.cat(ops.features(x[first : first + rows], t), 1) - mean
        square += features.T @ features
    return mean, square / len(x)


def pairs_of(gap: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each frequency for themselves: ``(F, 2, 1)`` and ``(F, 2, 2)``.

    Of a ``gap`` ``(2F,)`` and its ``covariance`` ``(2F, 2F)``, all cosines first.
    """
    F = len(gap) // 2
    own = covariance.reshape(2, F, 2, F).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    return gap.reshape(2, F).T.unsqueeze(2), own
