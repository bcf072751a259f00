"""The Gaussian kernel's mean under a normal law, in closed form.

With ``C = diag(σ) Σ diag(σ)`` of a law N(μ, Σ), ``z = σ ⊙ (y - μ)`` and the kernel
``k(a, b) = exp(-½|σ ⊙ (a - b)|²)``,

    E k(a, y) = |I + C|^-½ exp(-½ zᵀ (I + C)⁻¹ z),    E k(a, a') = |I + 2C|^-½.

Letters: S sets, n rows of each, D features.

Source: Henze & Zirkler, *A class of invariant consistent tests for multivariate normality*,
Communications in Statistics 19 (1990).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from ncfd import _validation as check
from ncfd._devices import widest_float


class NormalLaw(NamedTuple):
    """A normal law, or one for each set."""

    mean: Tensor  # (D,) or (S, D)
    deviation: Tensor | None  # the same shape, or None where there is a covariance
    covariance: Tensor | None  # (D, D) or (S, D, D)

    def of(self, sets: Tensor) -> NormalLaw:
        """The laws of some sets."""
        if self.mean.ndim == 1:
            return self
        return NormalLaw(*(None if v is None else v[sets] for v in self))  # type: ignore[arg-type]  # None stays where it was

    def less_one(self, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """``E k(a, a') - 1``, () or (S,), and ``E k(a, y) - 1``, (S, n), of rows ``(S, n, D)``."""
        centred = scale * (y - self.mean.unsqueeze(-2))
        if self.deviation is not None:
            variance = (scale * self.deviation).square()
            own, cross = (0.5 * (m * variance).log1p().sum(-1) for m in (2, 1))
            square = (centred.square() / (1 + variance).unsqueeze(-2)).sum(-1)
        else:
            assert self.covariance is not None
            scale = scale.expand(y.shape[-1])
            C = scale.unsqueeze(1) * self.covariance * scale
            unit = torch.eye(y.shape[-1], dtype=C.dtype, device=C.device)
            factors = [torch.linalg.cholesky(unit + m * C) for m in (2, 1)]
            own, cross = (L.diagonal(dim1=-2, dim2=-1).log().sum(-1) for L in factors)
            whitened = torch.linalg.solve_triangular(factors[1], centred.mT, upper=False)
            square = whitened.square().sum(-2)
        return (-own).expm1(), (-cross.unsqueeze(-1) - 0.5 * square).expm1()


def normal_law(law: Distribution, name: str, batch: tuple[int, ...], y: Tensor) -> NormalLaw:
    """The law in the widest type of the device, one for all sets or one for each of ``batch``."""
    D = law.event_shape.numel()
    if y.shape[-1] != D:
        raise ValueError(
            f"{name} must be a law of {y.shape[-1]} features like y, got event shape "
            f"{tuple(law.event_shape)}{check.as_rows(y, 'y')}"
        )
    if tuple(law.batch_shape) not in ((), batch):
        raise ValueError(
            f"{name} has batch shape {tuple(law.batch_shape)}, which must be () or {batch} to "
            f"match y (its batch, or the groups){check.as_rows(y, 'y')}"
        )
    base = law
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Normal):
        shape = base.batch_shape
        found = NormalLaw(base.loc.expand(shape), base.scale.expand(shape), None)
    elif base is law and isinstance(law, (MultivariateNormal, LowRankMultivariateNormal)):
        found = NormalLaw(law.loc, None, law.covariance_matrix)
    else:
        raise TypeError(
            f"{name} must be samples or a normal law (Normal, Independent of it, "
            f"MultivariateNormal, LowRankMultivariateNormal), got {type(law).__name__}; pass "
            f"samples of it, or take ncfd_loss, which knows more laws"
        )
    check.check_device(found.mean, name, y.device)
    sets = (-1,) if law.batch_shape else ()
    wide = widest_float(y.device)
    mean, deviation, covariance = found
    return NormalLaw(
        mean.to(wide).reshape(*sets, D),
        None if deviation is None else deviation.to(wide).reshape(*sets, D),
        None if covariance is None else covariance.to(wide).reshape(*sets, D, D),
    )
