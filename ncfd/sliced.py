r"""Samples against a standard normal, projection by projection: SIGReg.

A distribution is N(0, I) if and only if its projection on every line is N(0, 1) (Cramér and Wold).
So D dimensions are compared in one: along random directions u, by the characteristic function of
the projections at a few nodes.

Letters: N samples, D features, K directions (slices), J nodes without the one at 0, V the product
of the leading batch dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ncfd import _processes, _samples, ops
from ncfd import _validation as check
from ncfd._devices import widest_float

__all__ = ["sliced_normality"]


def sliced_normality(
    x: Tensor,
    directions: Tensor,
    *,
    num_nodes: int = 17,
    t_max: float = 3.0,
    process_group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""How far projections of samples are from a standard normal: the sliced Epps-Pulley statistic.

    .. math::
        \frac1K \sum_k N \int_{-t_{\max}}^{t_{\max}}
        \bigl|\hat\varphi_{u_k}(s) - e^{-s^2/2}\bigr|^2 e^{-s^2/2}\,ds,\qquad
        \hat\varphi_u(s) = \frac1N \sum_n e^{i s\langle u, x_n\rangle}

    by the trapezoidal rule on ``num_nodes`` nodes of ``[0, t_max]``; the other half of the line
    holds the same. One cosine and one sine of each projection give all nodes. What a line adds to
    the gradient depends on that line alone, so it is formed with the value and takes the place of
    the projections: memory is that of ``(*, N, K)`` once. In a compiled graph, across processes,
    and beyond 65 nodes or 65536 rows projections are kept, and the backward forms waves again:
    twice that memory.

    Args:
        x: samples ``(*, N, D)``, floating point. Leading dimensions, such as views, are averaged.
        directions: ``(D, K)``, one direction a column, of length 1; they are taken as they are.
        num_nodes: nodes on ``[0, t_max]``, both ends included, at least 2.
        t_max: the largest node, in radians per unit of a projection. The nodes are apart by
            ``t_max / (num_nodes - 1)``: projections beyond π over that are seen as nearer ones.
        process_group: processes whose parts, any number of rows each, make up the batch. Leading
            dimensions and ``directions`` are the same on all; the value is that of the whole batch,
            N being all of its rows, and under ``DistributedDataParallel`` the averaged gradients of
            the parameters are those of one process with the whole batch.

    Returns:
        A scalar ``>= 0``, float32, or float64 if an input is. It grows like N where the samples
        are not normal; of standard normal ones the mean is about 1.05 whatever N is.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, numbers out of range, or directions that differ between
            processes.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> sliced_normality(x, torch.ones(1, 1)).round(decimals=4)
        tensor(0.2057)

    Source: Epps & Pulley, *A test for normality based on the empirical characteristic function*,
    Biometrika 70 (1983); sliced, as a regulariser: Balestriero & LeCun, *LeJEPA*, 2025
    (arXiv:2511.08544).
    """
    group = _processes.check_group(process_group)
    num_nodes, t_max = check_nodes(num_nodes, t_max)
    x = check.check_samples(x, "x", part=group is not None)
    u = check.check_floating(directions, "directions")
    if u.ndim != 2 or u.shape[0] != x.shape[-1] or u.shape[1] == 0:
        raise ValueError(
            f"directions must have shape ({x.shape[-1]}, K) to match the samples, "
            f"got {check.describe(u)}{check.as_rows(x, 'x')}"
        )
    check.check_device(u, "directions", x.device)
    return statistic(x, u, num_nodes, t_max, group, common=False)


def check_nodes(num_nodes: object, t_max: object) -> tuple[int, float]:
    count = check.check_count(num_nodes, "num_nodes")
    if count < 2:
        raise ValueError(f"num_nodes must be at least 2, both ends of [0, t_max], got {count}")
    return count, check.check_positive(t_max, "t_max", torch.float32)


def statistic(
    x: Tensor,
    u: Tensor,
    num_nodes: int,
    t_max: float,
    group: torch.distributed.ProcessGroup | None,
    *,
    common: bool,
) -> Tensor:
    """The value; ``common``: the directions are known to be the same on all processes."""
    dtype = _samples.compute_dtype(x, u)
    N, D = x.shape[-2:]
    step = t_max / (num_nodes - 1)
    rows, u = x.to(dtype).reshape(-1, D), u.to(dtype)
    # The whole computation in float32 at least: in half precision the projections would be 0.4 %
    # wrong, and so would the sum over nodes.
    with ops.full_precision(x):
        if group is None and ops.gaps_fit(N, num_nodes - 1):
            if torch.is_grad_enabled() and (rows.requires_grad or u.requires_grad):
                value: Tensor = _OnePass.apply(rows, u, N, num_nodes, step)
                return value
            return _one_pass(rows, u, N, num_nodes, step, slopes=False)[0]
        views = math.prod(x.shape[:-2])  # a part may have no rows, and views all the same
        return _in_steps(rows, u, N, num_nodes, step, views, group, common=common)


def _in_steps(
    rows: Tensor,
    u: Tensor,
    N: int,
    num_nodes: int,
    step: float,
    views: int,
    group: torch.distributed.ProcessGroup | None = None,
    *,
    common: bool = False,
) -> Tensor:
    """The statistic of ``rows (V N, D)``, each step with a derivative of its own."""
    # All views in one product, samples last, where the sums want them: (K, V, N).
    s = torch.mm(u.T, rows.T).view(u.shape[1], views, N)
    sums = ops.line_sums(s, step, num_nodes - 1)  # (K, V, 2 J)
    count: Tensor | int = N
    if group is not None:
        sums, count = _of_all_processes(sums, N, u, group, common)
    normal, weights = (sums.new_tensor(v) for v in _target(step, num_nodes))
    gap = (sums / count - normal).square()
    return count * (gap * weights).sum(2).mean()


def _one_pass(
    rows: Tensor, u: Tensor, N: int, num_nodes: int, step: float, *, slopes: bool
) -> tuple[Tensor, Tensor]:
    """The statistic, and with ``slopes`` K V times its derivative for the projections (K, V N)."""
    s = torch.mm(u.T, rows.T)
    target, weights = _target(step, num_nodes)
    values = ops.line_gaps(s.view(-1, N), step, target, weights, slopes=slopes)
    return N * values.mean(), s


class _OnePass(torch.autograd.Function):
    """``_in_steps`` for a loop: slopes are formed with the value, in the place of projections."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, u: Tensor, N: int, num_nodes: int, step: float) -> Tensor:
        value, slopes = _one_pass(rows, u, N, num_nodes, step, slopes=True)
        ctx.save_for_backward(rows, u, slopes)
        ctx.options = N, num_nodes, step
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, u, slopes = ctx.saved_tensors
        need_rows, need_u = ctx.needs_input_grad[:2]
        with ops.full_precision(rows):
            if torch.is_grad_enabled():
                return (*_differentiable(ctx, grad), None, None, None)
            scale = grad / (slopes.numel() // ctx.options[0])
            return (
                torch.mm(slopes.T, u.T) * scale if need_rows else None,
                torch.mm(rows.T, slopes.T) * scale if need_u else None,
                None,
                None,
                None,
            )


def _differentiable(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradients of ``rows`` and ``u`` with a graph of their own."""
    # Views: one tensor may stand in both places, and each wants its own share.
    rows, u = (v.view_as(v) for v in ctx.saved_tensors[:2])
    needs = ctx.needs_input_grad[:2]
    wanted = [v for v, needed in zip((rows, u), needs, strict=True) if needed]
    N, num_nodes, step = ctx.options
    value = _in_steps(rows, u, N, num_nodes, step, len(rows) // N)
    found = iter(torch.autograd.grad(value, wanted, grad, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def _target(step: float, num_nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``e^{-s²/2}`` and 0, and the weights of the squared distances from them, ``(2 J,)`` each."""
    normal = [math.exp(-0.5 * (step * j) ** 2) for j in range(1, num_nodes)]
    # Node 0 is missing: there is no distance. The ends count half, and s stands for -s.
    weights = [2 * step * v for v in normal]
    weights[-1] *= 0.5
    return (*normal, *[0.0] * len(normal)), (*weights, *weights)


def _of_all_processes(
    sums: Tensor,
    rows: int,
    u: Tensor,
    group: torch.distributed.ProcessGroup,
    common: bool,
) -> tuple[Tensor, Tensor]:
    """The sums of the whole batch, and how many rows it has."""
    visible = check.values_visible(u)
    told = visible and not common
    mark = _processes.mark_of(u) if told else u.new_zeros(3, dtype=widest_float(u.device))
    sums, count, mark = _processes.add_up([sums, sums.new_tensor(rows), mark], group)
    if visible:
        check.check_common_frequencies(mark, torch.distributed.get_world_size(group), "directions")
        if not bool(count > 0):
            raise ValueError("x must hold a sample on some process of the process_group")
    return sums, count
