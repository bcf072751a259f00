"""The exact limit of infinitely many Gaussian frequencies: a kernel, in closed form.

The mean of ``|φx - φy|²`` over normal frequencies is the square of a maximum mean discrepancy with
a Gaussian kernel. What :mod:`ncfd.functional` estimates with F frequencies is exact here.

Letters: N and M samples, D features, G groups, K components of a mixture, ``*`` leading batch
dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncfd import _samples, ops
from ncfd import _validation as check
from ncfd._samples import Given, Samples

__all__ = ["gaussian_ncfd"]


class _Rows(NamedTuple):
    """One side as ``B`` sets of samples: batch entries or groups, the latter padded."""

    x: Tensor  # (B, N, D)
    w: Tensor  # (B, N), adding up to 1, or 0 in an absent group
    present: Tensor | None  # (G,), or None without groups


def gaussian_ncfd(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor | str = 1.0,
    *,
    unbiased: bool = False,
    reduction: str = "mean",
    x_groups: Tensor | None = None,
    y_groups: Tensor | None = None,
    num_groups: int | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    chunk_size: int | None = None,
    real_rows: int | None = None,
) -> Tensor:
    r"""Squared discrepancy with infinitely many Gaussian frequencies, in closed form.

    .. math::
        \mathbb E_{t\sim N(0,\mathrm{diag}\,\sigma^2)}\, \tfrac12|\varphi_x(t)-\varphi_y(t)|^2
        = \tfrac12\,\mathrm{MMD}^2_k,\qquad k(a,b) = e^{-\frac12|\sigma\odot(a-b)|^2}

    The limit of ``ncfd_loss(x, y, t, squared=True)`` as F grows: no frequency noise, and cheaper
    whenever there are fewer synthetic samples than frequencies. Costs ``(N + M)²`` kernel values,
    formed in blocks: memory is linear in the samples. Nearly all of them are pairs of real samples
    where there are many; ``real_rows`` spares these, which the synthetic samples do not feel.

    Args:
        x: real samples ``(*, N, D)``.
        y: synthetic samples ``(*, M, D)``.
        scale: σ, the standard deviation of the frequencies, in radians per unit of ``x``: a
            number, ``(D,)``, or ``(K, D)`` or ``(K, 1)`` for the equal mixture of K normals,
            differentiable; or ``"median"``: one over the median distance of the rows of ``x``, of
            each group or batch entry, without a gradient.
        unbiased: the U-statistic (pairs of a sample with itself left out); can be negative.
        reduction: with groups, ``"mean"`` or ``"sum"`` over the groups present on both sides, or
            ``"none"``; without groups all three are the same.
        x_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with ``y_groups``.
        y_groups: integer labels ``(M,)``.
        num_groups: G; required with groups.
        x_weights: ``(*, N)``, non-negative, not all zero.
        y_weights: ``(*, M)``, likewise.
        chunk_size: rows of a block of kernel values. Default: what fits a core's cache, kept for
            the backward within ``ncfd.ops.BUDGET``.
        real_rows: how many rows of ``x`` (the first ones of each group) give the pairs of real
            samples, ``½ E [k(x, x') - 1]``. 0 leaves this term out: the gradient for ``y`` is the
            same, the value another. Some hundreds estimate it for a learned ``scale``, without
            bias if ``unbiased``. Not with ``x_weights``. Default: all.

    Returns:
        Shape ``*``; with groups a scalar, or ``(G,)`` for ``"none"`` with zeros for a group not
        present on both sides.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, labels, weights or options that do not fit, or ``real_rows=0`` where
            ``x``, its weights or ``scale`` want the gradient of the term it leaves out.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> gaussian_ncfd(x, x).item()
        0.0
        >>> round(gaussian_ncfd(x[:1], x[1:]).item(), 4)  # 1 - exp(-1/2)
        0.3935

    Source: Gretton et al., *A kernel two-sample test*, JMLR 13 (2012), with Bochner's theorem.
    """
    check.check_flag(unbiased, "unbiased")
    check.check_reduction(reduction)
    check.check_chunk_size(chunk_size)
    given = Given("x", x, x_weights, x_groups), Given("y", y, y_weights, y_groups)
    x = check.check_samples(x, "x")
    if isinstance(scale, str):
        if scale != "median":
            raise TypeError(f'scale must be a number, a tensor or "median", got {scale!r}')
        given, scale = _samples.in_unit_of_real(*given, num_groups, None), 1.0
    scales = _as_scales(scale, x)
    if real_rows is not None:
        check.check_real_rows(real_rows, unbiased, x_weights, x=x, scale=scales)
    sides = _samples.two_sides(*given, num_groups, scales)
    real, synthetic = _centred(*sides)
    present = None
    if real.present is not None and synthetic.present is not None:
        present = real.present & synthetic.present
    if unbiased:
        for side, rows in zip(given, (real, synthetic), strict=True):
            _check_pairs(side.name, rows, present)

    scales = scales.to(real.x.dtype)
    few = _first(real, real_rows)
    value = real.x.new_zeros(real.x.shape[0])
    alike = real.x.shape == synthetic.x.shape
    for own in (few, synthetic):
        if own.x.shape[1] > 0:
            value = value + 0.5 * _own_pairs(own, scales, chunk_size, present, unbiased, alike)
    value = value - ops.kernel_sums(real.x, synthetic.x, real.w, synthetic.w, scales, chunk_size)
    if not unbiased and real_rows is None:
        # The terms of near-equal samples cancel to a rounding of either sign; the slope stays.
        value = value + (value.clamp_min(0) - value).detach()
    if present is None:
        return value.reshape(sides[0].x.shape[:-2])
    value = torch.where(present, value, 0.0)
    if reduction == "none":
        return value
    check.check_common_groups(present, "x", "y")
    return value.sum() / (present.sum() if reduction == "mean" else 1)


def _own_pairs(
    side: _Rows,
    scales: Tensor,
    chunk_size: int | None,
    present: Tensor | None,
    unbiased: bool,
    alike: bool,
) -> Tensor:
    """``E k(x, x') - 1`` of one side, (B,); ``unbiased`` without the pairs of a row with itself."""
    # Equal samples cancel to the last bit where all three terms are formed alike.
    twin = (side.x, side.w) if alike else (None, None)
    term = ops.kernel_sums(side.x, twin[0], side.w, twin[1], scales, chunk_size)
    if not unbiased:
        return term
    share = side.w.square().sum(1)
    if present is not None:
        share = torch.where(present, share, 0.0)
    return term / (1 - share)


def _check_pairs(name: str, side: _Rows, present: Tensor | None) -> None:
    single = side.w.square().sum(1) >= 1
    single = single if present is None else single & present
    if check.values_visible(single) and bool(single.any()):
        raise check.too_few(name)


def _first(side: _Rows, rows: int | None) -> _Rows:
    """The first ``rows`` of each set of plain samples; None for all."""
    if rows is None or rows >= side.x.shape[1]:
        return side
    # Plain samples here, so only an absent group has none of positive weight.
    return _Rows(side.x[:, :rows], _normalised(side.w[:, :rows]), side.present)


def _normalised(w: Tensor) -> Tensor:
    total = w.sum(1, keepdim=True)
    return w / torch.where(total == 0, 1.0, total)


def _centred(x: Samples, y: Samples) -> tuple[_Rows, _Rows]:
    """Both sides about their common mean, (D,), which has no gradient; any point near would do.

    Squared distances lose digits far from the origin, and only differences count.
    """
    rows = [side.x.reshape(-1, *side.x.shape[-2:]) for side in (x, y)]
    total = rows[0].detach().sum((0, 1)) + rows[1].detach().sum((0, 1))
    center = total / (rows[0].shape[0] * (rows[0].shape[1] + rows[1].shape[1]))
    real, synthetic = (_as_sets(side, v - center) for side, v in zip((x, y), rows, strict=True))
    return real, synthetic


def _as_sets(side: Samples, x: Tensor) -> _Rows:
    w = x.new_ones(x.shape[:2]) if side.weights is None else side.weights.reshape(x.shape[:2])
    present = None
    if side.groups is not None and side.num_groups is not None:
        x, w = _by_group(x[0], w[0], side.groups, side.num_groups)  # (G, n, D), (G, n)
        present = w.sum(1) > 0
    return _Rows(x, _normalised(w), present)


def _as_scales(scale: object, x: Tensor) -> Tensor:
    """``(K, D)`` scales from a number, ``(D,)`` or ``(K, D)``."""
    dim = x.shape[-1]
    if not isinstance(scale, Tensor):
        dtype = _samples.compute_dtype(x)
        return x.new_full((1, dim), check.check_positive(scale, "scale", dtype), dtype=dtype)
    scale = check.check_floating(scale, "scale")
    check.check_device(scale, "scale", x.device)
    if scale.ndim == 0:
        return scale.expand(1, dim)
    if scale.ndim == 2 and scale.shape[-1] == 1:
        scale = scale.expand(-1, dim)
    if scale.ndim > 2 or scale.shape[-1] != dim or scale.shape[0] == 0:
        raise ValueError(
            f"scale must be a number, ({dim},), (K, 1) or (K, {dim}), got {check.describe(scale)}"
        )
    return scale.unsqueeze(0) if scale.ndim == 1 else scale


def _by_group(x: Tensor, w: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows sorted into ``(G, n, D)``, padded to the largest group with weight 0."""
    # Not `bincount`: its own look at the values would be a second wait for an accelerator.
    sizes = groups.new_zeros(count).index_add(0, groups, torch.ones_like(groups))
    order = torch.argsort(groups, stable=True)
    longest = int(sizes.max())
    start = torch.cumsum(sizes, 0) - sizes
    slot = torch.arange(longest, device=x.device)
    valid = slot < sizes.unsqueeze(1)  # (G, n)
    rows = order[(start.unsqueeze(1) + slot).clamp_max(len(groups) - 1)]
    return x[rows], torch.where(valid, w[rows], 0.0)
