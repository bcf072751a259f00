"""The sums as the mathematics asks for them: any batch shape, one side, or both in one step.

Two sides under the same frequencies make one step of the graph: fewer calls where the batch is
small, and one buffer for the gradient of the frequencies where it is large.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncfd.ops import _fused, _operator, _phases
from ncfd.ops._budget import BUDGET

#: Σ cos and Σ sin, each ``(*, F)`` or, with groups, ``(G, F)``.
Pair = tuple[Tensor, Tensor]


_Folded = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Side(NamedTuple):
    """Samples ``(*, N, D)`` with weights ``(*, N)`` and labels ``(N,)``, or None for either."""

    x: Tensor
    weights: Tensor | None
    groups: Tensor | None


def sums_of(
    side: Side, t: Tensor, num_groups: int | None = None, chunk_size: int | None = None
) -> Pair:
    """``sums`` for ``t (F, D)`` or ``(*, F, D)``; ``num_groups`` goes with labels."""
    shape = _shape(side, t, num_groups)
    cos_sum, sin_sum = _operator.sums(*_folded(side, t), num_groups or 1, chunk_size)
    return cos_sum.reshape(shape), sin_sum.reshape(shape)


def sums_of_both(
    x: Side,
    y: Side,
    t: Tensor,
    num_groups: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Pair, Pair]:
    """``sums_of`` for two sides with the same batch shape and groups."""
    # With the Triton kernels on, each side is theirs or not by itself.
    if not _fused.is_on() and _operator.takes_short_way(*x[:2], *y[:2], t):
        if num_groups is None and chunk_size is None and _are_few(x, y, t):
            few = _FewSums.apply(x.x, y.x, t)
            return few[:2], few[2:]
        sums = _BothSums.apply(*x, *y, t, num_groups, chunk_size)
        return sums[:2], sums[2:]
    return sums_of(x, t, num_groups, chunk_size), sums_of(y, t, num_groups, chunk_size)


def _shape(side: Side, t: Tensor, num_groups: int | None) -> tuple[int, ...]:
    batch = tuple(side.x.shape[:-2]) if num_groups is None else (num_groups,)
    return (*batch, t.shape[-2])


def _folded(side: Side, t: Tensor) -> _Folded:
    """``x (B, N, D)``, ``t (1 or B, F, D)``, weights and labels ``(B, N)``."""
    x, weights, groups = side
    return (
        x.unsqueeze(0) if x.ndim == 2 else x.reshape(-1, *x.shape[-2:]),
        t.unsqueeze(0) if t.ndim == 2 else t.reshape(-1, *t.shape[-2:]),
        None if weights is None else weights.reshape(-1, x.shape[-2]),
        None if groups is None else groups.unsqueeze(0),
    )


class _BothSums(torch.autograd.Function):
    """Both sides without the dispatcher and without composability: what a training loop runs."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        x, y, (t, num_groups, chunk) = Side(*args[:3]), Side(*args[3:6]), args[6:]
        need_t = ctx.needs_input_grad[6]
        sums: list[Tensor] = []
        kept: list[list[Tensor]] = []
        constant: list[Tensor] = []
        for side, needs in ((x, ctx.needs_input_grad[:2]), (y, ctx.needs_input_grad[3:5])):
            folded = _folded(side, t)
            needed = need_t or any(needs)
            keep = needed and chunk is None and _phases.keeps_phases(*folded[:2])
            pair = _phases.forward(*folded, num_groups or 1, chunk or 0, keep)
            shape = _shape(side, t, num_groups)
            sums += [v.reshape(shape) for v in pair[:2]]
            kept.append(pair[2])
            constant += [] if needed else sums[-2:]
        ctx.mark_non_differentiable(*constant)
        ctx.save_for_backward(*x, *y, t, *kept[0], *kept[1])
        ctx.pieces = len(kept[0])
        ctx.num_groups, ctx.chunk = num_groups, chunk or 0
        ctx.set_materialize_grads(False)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        x, y, t, kept = Side(*saved[:3]), Side(*saved[3:6]), saved[6], saved[7:]
        if torch.is_grad_enabled() or any(g is not None and _operator.is_batched(g) for g in grads):
            return _differentiable(grads, x, y, t, needs, ctx.num_groups, ctx.chunk)
        found: list[Tensor | None] = [None] * 9
        grad_t: Tensor | None = None
        for place, side, pair, pieces in (
            (0, x, grads[:2], kept[: ctx.pieces]),
            (3, y, grads[2:], kept[ctx.pieces :]),
        ):
            wanted = needs[place], needs[6], needs[place + 1]
            if (pair[0] is None and pair[1] is None) or not any(wanted):
                continue
            folded = _folded(side, t)
            both = _folded_grads(pair, *folded[:2], ctx.num_groups)
            x3, t3, w2, g2 = folded
            grad_x, grad_t, grad_w = _phases.backward(
                *both, x3, t3, w2, g2, pieces, ctx.chunk, *wanted, grad_t=grad_t
            )
            _put(found, place, side, wanted, grad_x, grad_w)
        if needs[6] and grad_t is not None:
            found[6] = grad_t.contiguous().view(t.shape)
        return tuple(found)


def _folded_grads(
    pair: tuple[Tensor | None, ...], x: Tensor, t: Tensor, num_groups: int | None
) -> Pair:
    """Gradients of both sums, ``(B, G, F)``, for folded ``x``, ``t``; zeros where there is none."""
    shape = (x.shape[0], num_groups or 1, t.shape[1])
    cos, sin = (x.new_zeros(shape) if g is None else g.reshape(shape) for g in pair)
    return cos, sin


def _put(
    found: list[Tensor | None],
    place: int,
    side: Side,
    wanted: tuple[bool, bool, bool],
    grad_x: Tensor,
    grad_w: Tensor,
) -> None:
    """The gradients of a side at their places."""
    if wanted[0]:
        found[place] = grad_x.reshape(side.x.shape)
    if wanted[2] and side.weights is not None:
        found[place + 1] = grad_w.reshape(side.weights.shape)


def _differentiable(
    grads: tuple[Tensor | None, ...],
    x: Side,
    y: Side,
    t: Tensor,
    needs: tuple[bool, ...],
    num_groups: int | None,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The backward of both sides with a gradient of its own: one step of the graph a side."""
    found: list[Tensor | None] = [None] * 9
    for place, side, pair in ((0, x, grads[:2]), (3, y, grads[2:])):
        wanted = needs[place], needs[6], needs[place + 1]
        if (pair[0] is None and pair[1] is None) or not any(wanted):
            continue
        folded = _folded(side, t)
        both = _folded_grads(pair, *folded[:2], num_groups)
        grad_x, grad_t, grad_w = _operator.differentiable_backward(*both, *folded, chunk, *wanted)
        _put(found, place, side, wanted, grad_x, grad_w)
        if wanted[1]:
            grad_t = grad_t.reshape(t.shape)
            found[6] = grad_t if found[6] is None else found[6] + grad_t
    return tuple(found)


def _are_few(x: Side, y: Side, t: Tensor) -> bool:
    """Plain samples with so few phases that calls take longer than cosines."""
    if x.x.ndim != 2 or t.ndim != 2 or x.weights is not None or y.weights is not None:
        return False
    phases = (x.x.shape[0] + y.x.shape[0]) * t.shape[0]
    return 2 * phases * t.element_size() <= min(BUDGET["few"], BUDGET["kept"])


class _FewSums(torch.autograd.Function):
    """``_BothSums`` for few phases: cosines and sines kept, and as few calls as there can be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        turned = t.T
        with _phases.autocast_off(x.device):
            theta_x, theta_y = torch.mm(x, turned), torch.mm(y, turned)
        x_cos, x_sin = torch.cos(theta_x), theta_x.sin_()
        y_cos, y_sin = torch.cos(theta_y), theta_y.sin_()
        ctx.save_for_backward(x, y, t, x_cos, x_sin, y_cos, y_sin)
        sums = x_cos.sum(0), x_sin.sum(0), y_cos.sum(0), y_sin.sum(0)
        need_x, need_y, need_t = ctx.needs_input_grad
        if not need_t and not (need_x and need_y):
            ctx.mark_non_differentiable(*(sums[2:] if need_x else sums[:2]))
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, t, *points = ctx.saved_tensors
        need_x, need_y, need_t = ctx.needs_input_grad
        if torch.is_grad_enabled() or any(_operator.is_batched(g) for g in grads):
            sides = Side(x, None, None), Side(y, None, None)
            needs = (need_x, False, False, need_y, False, False, need_t)
            found = _differentiable(grads, *sides, t, needs, None, 0)
            return found[0], found[3], found[6]
        grad_x = grad_y = grad_t = None
        with _phases.autocast_off(x.device):
            if need_x or need_t:
                slopes = torch.mul(points[0], grads[1]).addcmul_(points[1], grads[0], value=-1)
                grad_x = torch.mm(slopes, t) if need_x else None
                grad_t = torch.mm(slopes.T, x) if need_t else None
            if need_y or need_t:
                slopes = torch.mul(points[2], grads[3]).addcmul_(points[3], grads[2], value=-1)
                grad_y = torch.mm(slopes, t) if need_y else None
                grad_t = None if grad_t is None else grad_t.addmm_(slopes.T, y)
        return grad_x, grad_y, grad_t
