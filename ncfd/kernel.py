"""The exact limit of infinitely many Gaussian frequencies: a kernel, in closed form.

The mean of ``|φx - φy|²`` over normal frequencies is the square of a maximum mean discrepancy with
a Gaussian kernel. What :mod:`ncfd.functional` estimates with F frequencies is exact here.

Letters: N and M samples, D features, G groups, K components of a mixture, ``*`` leading batch
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ncfd import _samples, ops
from ncfd import _validation as check
from ncfd._centre import CENTRE_ROWS, middle
from ncfd._median import inverse_median_distance
from ncfd._normal import NormalLaw, normal_law
from ncfd._samples import Given, Samples

__all__ = ["gaussian_ncfd"]


class _Rows(NamedTuple):
    """One side as S sets of samples: batch entries, or groups of about one size, padded."""

    name: str
    x: Tensor  # (S, n, D)
    w: Tensor  # (S, n), adding up to 1, or all 0 in an absent group


class _Form(NamedTuple):
    """The options of every sum over pairs."""

    scales: Tensor  # (K, D) or (K, 1)
    unbiased: bool
    real_rows: int | None
    chunk_size: int | None


def gaussian_ncfd(
    x: Tensor | Distribution,
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

    Of a normal law for ``x`` it is the statistic of Henze and Zirkler (BHEP) for samples ``y``,
    divided by 2M.

    The limit of ``ncfd_loss(x, y, t, squared=True)`` as F grows: no frequency noise, and cheaper
    whenever there are fewer synthetic samples than frequencies. Costs ``(N + M)²`` kernel values,
    formed in blocks: memory is linear in the samples. With groups it is the sum of that over them,
    whatever their sizes. Nearly all values are pairs of real samples where there are many;
    ``real_rows`` spares these, which the synthetic samples do not feel. Rows may lie anywhere: only
    differences count, in rounding too. Sets with rows at several places many times 1/σ apart cost
    up to ten times as much, and so do their second derivatives, and ``torch.func`` transforms.

    Args:
        x: real samples ``(*, N, D)``, or a normal law as a :mod:`torch.distributions` object:
            Normal, Independent of it, MultivariateNormal, LowRankMultivariateNormal, with D
            elements in one event and batch shape ``()``, ``*``, or ``(G,)`` with ``y_groups``
            alone; differentiable in its parameters.
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
    real, synthetic = Given("x", x, x_weights, x_groups), Given("y", y, y_weights, y_groups)
    if isinstance(x, Distribution):
        if real_rows is not None or isinstance(scale, str):
            raise ValueError('real_rows and scale="median" are of samples, but x is a Distribution')
        scales = _as_scales(scale, check.check_samples(y, "y"), name="y")
        form = _Form(scales, unbiased, None, chunk_size)
        value, present = _beside_law(x, real, synthetic, num_groups, form)
    else:
        of_data = isinstance(scale, str)
        if of_data and scale != "median":
            raise TypeError(f'scale must be a number, a tensor or "median", got {scale!r}')
        both = check.check_samples(x, "x"), check.check_samples(y, "y")
        scales = _as_scales(1.0 if of_data else scale, *both, name="x")
        if real_rows is not None:
            real_rows = check.check_real_rows(real_rows, unbiased, x_weights, x=x, scale=scales)
        sides = _samples.two_sides(real, synthetic, num_groups, scales)
        form = _Form(scales.to(sides[0].x.dtype), unbiased, real_rows, chunk_size)
        value, present = _between_samples(*sides, of_data, form)
    if present is None or reduction == "none":
        return value
    check.check_common_groups(present, "x", "y")
    return value.sum() / (present.sum() if reduction == "mean" else 1)


def _between_samples(
    real: Samples, synthetic: Samples, of_data: bool, form: _Form
) -> tuple[Tensor, Tensor | None]:
    """The value, ``*`` or (G,), and which groups are there."""
    unit = None
    if of_data:
        unit = inverse_median_distance(real.x, real.groups, real.num_groups, real.weights)
    if real.groups is None:
        value = _discrepancy(_as_sets(real), _as_sets(synthetic), unit, form)
        return value.reshape(real.x.shape[:-2]), None
    return _of_groups(
        [real, synthetic],
        lambda sets, groups: _discrepancy(
            sets[0], sets[1], None if unit is None else unit[groups], form
        ),
    )


def _beside_law(
    law: Distribution, real: Given, synthetic: Given, num_groups: int | None, form: _Form
) -> tuple[Tensor, Tensor | None]:
    """The same with a normal law for x."""
    samples = _samples.beside_law(real, synthetic, num_groups, form.scales)
    y, G = samples.x, samples.num_groups
    form = form._replace(scales=form.scales.to(y.dtype))
    batch = tuple(y.shape[:-2]) if G is None else (G,)
    normal = normal_law(law, real.name, batch, y)
    if G is not None:
        return _of_groups(
            [samples], lambda sets, groups: _from_law(normal.of(groups), sets[0], form)
        )
    return _from_law(normal, _as_sets(samples), form).reshape(batch), None


def _from_law(law: NormalLaw, rows: _Rows, form: _Form) -> Tensor:
    """Half the squared MMD of S sets from normal laws, (S,)."""
    y, w = rows.x.to(law.mean.dtype), rows.w.to(law.mean.dtype)
    total = y.new_zeros(len(y))
    with ops.full_precision(y):
        for scale in form.scales.to(y.dtype):
            own, cross = law.less_one(y, scale)
            total = total + 0.5 * own - (w * cross).sum(1)
    value = (total / len(form.scales)).to(rows.x.dtype)
    pairs = ops.kernel_sums(
        *(rows.x, rows.x[:, :0], rows.w, rows.w[:, :0], form.scales), chunk_size=form.chunk_size
    )[0]
    value = value + 0.5 * _own_pairs(pairs, rows.w, rows.name, form)
    # NaN where a row is infinite, which is merely far from the law.
    value = value + 0 * rows.x.detach().abs().amax((1, 2))
    return value if form.unbiased else _not_negative(value)


def _not_negative(value: Tensor) -> Tensor:
    """Terms of near-equal samples cancel to a rounding of either sign; the slope stays."""
    return value + (value.clamp_min(0) - value).detach()


def _discrepancy(real: _Rows, synthetic: _Rows, unit: Tensor | None, form: _Form) -> Tensor:
    """Half the squared MMD of S pairs of sets, (S,); ``unit (S,)`` multiplies the scales."""
    if unit is not None:
        unit = unit.to(real.x.dtype).reshape(-1, 1, 1)
    sums = ops.kernel_sums(
        *(real.x, synthetic.x, real.w, synthetic.w, form.scales),
        unit=unit,
        own=form.real_rows,
        chunk_size=form.chunk_size,
    )
    in_real, in_synthetic, between = sums.unbind()
    w = real.w
    if form.real_rows is not None and form.real_rows < w.shape[1]:  # of the whole, before
        few = w[:, : form.real_rows]
        w = _normalised(few)
        in_real = in_real / _total(few).squeeze(1).square()
    own = _own_pairs(in_synthetic, synthetic.w, synthetic.name, form)
    if w.shape[1] > 0:
        own = own + _own_pairs(in_real, w, real.name, form)
    value = 0.5 * own - between
    if not form.unbiased and form.real_rows is None:
        return _not_negative(value)
    return value


def _own_pairs(pairs: Tensor, w: Tensor, name: str, form: _Form) -> Tensor:
    """``E k(x, x') - 1`` of one side, (S,); ``unbiased`` without the pairs of a row with itself."""
    if not form.unbiased:
        return pairs
    share = w.square().sum(1)
    single = share >= 1
    if check.values_visible(single) and bool(single.any()):
        raise check.too_few(name)
    return pairs / (1 - share)


def _normalised(w: Tensor) -> Tensor:
    """Weights ``(S, n)`` that add up to 1 in each set; in an empty one they stay 0."""
    return w / _total(w)


def _total(w: Tensor) -> Tensor:
    total = w.sum(1, keepdim=True)
    return torch.where(total == 0, 1.0, total)


# ------------------------------------------------------------------------------------------------
# Sets
# ------------------------------------------------------------------------------------------------


def _as_sets(side: Samples) -> _Rows:
    """Each batch entry as a set."""
    x = side.x.reshape(-1, *side.x.shape[-2:])
    if side.weights is not None:
        w = side.weights.reshape(x.shape[:2])
        return _padded(side.name, x, w, (w == 0).argsort(dim=1, stable=True))
    return _Rows(side.name, x, x.new_full(x.shape[:2], 1 / x.shape[1]))


def _padded(name: str, x: Tensor, w: Tensor, order: Tensor) -> _Rows:
    """Sets ``x (S, n, D)`` some of whose rows are absent; ``order (S, n)`` has these last."""
    few = torch.arange(CENTRE_ROWS, device=x.device) * (w != 0).sum(1, keepdim=True)  # (S, 9)
    few = order.gather(1, few // CENTRE_ROWS).unsqueeze(2).expand(-1, -1, x.shape[2])
    # Not at 0, where absent rows are: that may be far away, where kernels cost more.
    x = torch.where((w == 0).unsqueeze(2), middle(x.detach().gather(1, few)), x)
    return _Rows(name, x, _normalised(w))


def _of_groups(
    sides: list[Samples], value_of: Callable[[list[_Rows], Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The value of each group, 0 where a side has no rows, and which groups are there: (G,)."""
    count, x = sides[0].num_groups, sides[0].x
    assert count is not None
    present = torch.stack([side.weight(torch.float32) != 0 for side in sides]).all(0)
    in_order = [_Sorted.of(side, present) for side in sides]
    # The only wait for an accelerator.
    sizes = torch.stack([side.sizes for side in in_order], 1).tolist()
    value = x.new_zeros(count)
    for groups in _alike(sizes):
        index = torch.tensor(groups, device=x.device)
        longest = [max(sizes[g][k] for g in groups) for k in range(len(sides))]
        sets = [side.sets(index, n) for side, n in zip(in_order, longest, strict=True)]
        value = value.index_add(0, index, value_of(sets, index))
    return value, present


def _alike(sizes: list[list[int]]) -> list[list[int]]:
    """Groups whose sizes are alike, so that padding them costs a few times the rows there are."""
    largest = [max(column) for column in zip(*sizes, strict=True)]
    found: dict[tuple[int, ...], list[int]] = {}
    for g, pair in enumerate(sizes):
        if min(pair) > 0:
            # Halvings of the largest; the smallest groups cost little whatever they hold.
            key = (m // max(size, min(m, 4)) for size, m in zip(pair, largest, strict=True))
            found.setdefault(tuple(k.bit_length() for k in key), []).append(g)
    return list(found.values())


class _Sorted(NamedTuple):
    """Samples in the order of their groups."""

    samples: Samples
    w: Tensor  # (N,)
    order: Tensor  # (N,)
    sizes: Tensor  # (G,)
    start: Tensor  # (G,)

    @classmethod
    def of(cls, samples: Samples, present: Tensor) -> _Sorted:
        """Rows of weight 0 and of groups without a counterpart are left out."""
        x, groups, count = samples.x, samples.groups, samples.num_groups
        assert groups is not None
        assert count is not None
        w = x.new_ones(len(x)) if samples.weights is None else samples.weights
        groups = torch.where((w != 0) & present[groups], groups, count)
        # Not `bincount`: its own look at the values would be a second wait for an accelerator.
        sizes = groups.new_zeros(count + 1).index_add(0, groups, torch.ones_like(groups))[:count]
        return cls(
            samples, w, torch.argsort(groups, stable=True), sizes, torch.cumsum(sizes, 0) - sizes
        )

    def sets(self, groups: Tensor, longest: int) -> _Rows:
        """Some groups as ``(S, n, D)``, padded with rows of their own of weight 0."""
        sizes = self.sizes[groups].unsqueeze(1)
        slot = torch.arange(longest, device=groups.device)
        rows = self.order[self.start[groups].unsqueeze(1) + torch.minimum(slot, sizes - 1)]
        w = torch.where(slot < sizes, self.w[rows], 0.0)
        order = slot.expand(len(groups), -1)
        return _padded(self.samples.name, self.samples.x[rows], w, order)


# ------------------------------------------------------------------------------------------------
# Scales
# ------------------------------------------------------------------------------------------------


def _as_scales(scale: object, x: Tensor, *others: Tensor, name: str) -> Tensor:
    """``(K, D)`` scales, or ``(K, 1)`` isotropic ones, from whatever is allowed.

    They are for samples ``x``, which the caller knows by ``name``, beside others.
    """
    dim = x.shape[-1]
    if not isinstance(scale, Tensor):
        dtype = _samples.compute_dtype(x, *others)
        return x.new_full((1, 1), check.check_positive(scale, "scale", dtype), dtype=dtype)
    scale = check.check_floating(scale, "scale")
    check.check_device(scale, "scale", x.device)
    if scale.ndim == 0:
        return scale.reshape(1, 1)
    isotropic = scale.ndim == 2 and scale.shape[1] == 1
    if scale.ndim > 2 or scale.shape[0] == 0 or not (isotropic or scale.shape[-1] == dim):
        raise ValueError(
            f"scale must be a number, ({dim},), (K, 1) or (K, {dim}), got "
            f"{check.describe(scale)}{check.as_rows(x, name)}"
        )
    return scale.unsqueeze(0) if scale.ndim == 1 else scale
