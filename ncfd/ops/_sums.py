"""The one choice among the ways to the sums, and the ways of a training loop.

=====================  =======================================================================
who calls              way
=====================  =======================================================================
``torch.compile``,     the operator ``ncfd::cf_sums`` (dynamo refuses a Function whose backward is
``torch.export``       another one)
``torch.func``         the Function round it (an operator with registered autograd is refused)
both at once           plain operations (dynamo refuses the Function, ``torch.func`` the operator)
a loop, few phases     :class:`_FewSums`: cosines and sines kept, as few calls as there can be
a loop                 :class:`_EagerSums`: both sides in one step of the graph, in blocks
without gradients      the kernels of :mod:`ncfd.ops._phases` alone
=====================  =======================================================================

All but the plain operations and the few end in :mod:`ncfd.ops._phases`, which hands what the Triton
kernels take to them, where these are switched on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncfd.ops import _fused, _operator, _phases
from ncfd.ops._budget import BUDGET

#: Σ cos and Σ sin, each ``(*, F)`` or, with groups, ``(G, F)``.
Pair = tuple[Tensor, Tensor]


class Side(NamedTuple):
    """Samples ``(*, N, D)`` with weights ``(*, N)`` and labels ``(N,)``, or None for either.

    Labels ``(B, N)`` go with samples ``(B, N, D)`` and give sums ``(B, G, F)``.
    """

    x: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None


def sums_of(
    sides: Sequence[Side], t: Tensor, num_groups: int | None = None, chunk_size: int | None = None
) -> list[Pair]:
    """``(Σ_n w_n cos⟨t, x_n⟩, Σ_n w_n sin⟨t, x_n⟩)`` of each side, one or two of one shape.

    Args:
        sides: the samples, float32 or float64, at least one row each.
        t: frequencies ``(F, D)`` or ``(*, F, D)``; dtype of the samples.
        num_groups: G, if and only if the sides have labels, int64 in ``[0, num_groups)``.
        chunk_size: rows whose phases are held at once; None chooses by ``BUDGET``, and keeps all
            phases for the backward when the budget holds them.

    Differentiable twice in the samples, ``t`` and the weights.
    """
    inputs = [v for side in sides for v in side[:2]]
    wants_grad = torch.is_grad_enabled() and (
        t.requires_grad or any(v is not None and v.requires_grad for v in inputs)
    )
    composed = torch.compiler.is_compiling() or _operator.transforming()
    if wants_grad and not composed:
        if chunk_size is None and num_groups is None and _are_few(sides, t):
            found = _FewSums.apply(sides[0].x, sides[1].x, t)
        else:
            found = _EagerSums.apply(t, num_groups, chunk_size or 0, *(v for s in sides for v in s))
        return [found[k : k + 2] for k in range(0, len(found), 2)]
    pairs = []
    for side in sides:
        folded = _folded(side, t)
        keep = wants_grad and chunk_size is None and _phases.keeps_phases(*folded[:2], folded[3])
        way = _operator.sums if composed else _phases.forward
        cos_sum, sin_sum = way(*folded, num_groups or 1, chunk_size or 0, keep)[:2]
        shape = _shape(side, t, num_groups)
        pairs.append((cos_sum.reshape(shape), sin_sum.reshape(shape)))
    return pairs


def sums_apart(
    sides: Sequence[Side], t: Tensor, num_groups: int | None = None
) -> tuple[list[Pair], list[Pair]]:
    """:func:`sums_of` twice: whose gradient reaches the samples only, and ``t`` only."""
    composed = torch.compiler.is_compiling() or _operator.transforming()
    if torch.is_grad_enabled() and t.requires_grad and not composed:
        found = _ApartSums.apply(t, num_groups, 0, *(v for s in sides for v in s))
        pairs = [found[k : k + 2] for k in range(0, len(found), 2)]
        return pairs[: len(sides)], pairs[len(sides) :]
    fixed = [
        Side(s.x.detach(), None if s.weights is None else s.weights.detach(), s.groups)
        for s in sides
    ]
    return sums_of(sides, t.detach(), num_groups), sums_of(fixed, t, num_groups)


def sums(
    x: Tensor,
    t: Tensor,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    num_groups: int = 1,
    chunk_size: int | None = None,
) -> Pair:
    """:func:`sums_of` one side in folded form, each ``(B, G, F)``.

    Args:
        x: samples ``(B, N, D)``.
        t: frequencies ``(1, F, D)`` shared by all batches, or ``(B, F, D)``.
        weights: ``(B, N)`` or None for ones.
        groups: labels ``(B, N)``, or None for one group.
        num_groups: G.
        chunk_size: as there.
    """
    count = None if groups is None else num_groups
    [(cos_sum, sin_sum)] = sums_of([Side(x, weights, groups)], t, count, chunk_size)
    if groups is None:
        return cos_sum.unsqueeze(1), sin_sum.unsqueeze(1)
    return cos_sum, sin_sum


def _shape(side: Side, t: Tensor, num_groups: int | None) -> tuple[int, ...]:
    batch = tuple(side.x.shape[:-2])
    if num_groups is not None:
        batch = (*batch, num_groups)
    return (*batch, t.shape[-2])


def _folded(side: Side, t: Tensor) -> _phases.Folded:
    """``x (B, N, D)``, ``t (1 or B, F, D)``, weights and labels ``(B, N)``."""
    x, weights, groups = side
    return (
        x.unsqueeze(0) if x.ndim == 2 else x.reshape(-1, *x.shape[-2:]),
        t.unsqueeze(0) if t.ndim == 2 else t.reshape(-1, *t.shape[-2:]),
        None if weights is None else weights.reshape(-1, x.shape[-2]),
        groups if groups is None or groups.ndim == 2 else groups.unsqueeze(0),
    )


class _EagerSums(torch.autograd.Function):
    """One side, or both in one step, without the dispatcher and without composability.

    Two sides under the same frequencies make fewer calls where the batch is small, and one buffer
    for the gradient of the frequencies where it is large.
    """

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, num_groups: int | None, chunk: int, *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        sums: list[Tensor] = []
        kept: list[Tensor] = []
        constant: list[Tensor] = []
        ctx.pieces = []  # how many tensors are kept of each side
        for place, side in _sides(flat):
            folded = _folded(side, t)
            needed = any(ctx.needs_input_grad[k] for k in (0, place, place + 1))
            keep = needed and chunk == 0 and _phases.keeps_phases(*folded[:2], folded[3])
            cos_sum, sin_sum, pieces = _phases.forward(*folded, num_groups or 1, chunk, keep)
            shape = _shape(side, t, num_groups)
            sums += [cos_sum.reshape(shape), sin_sum.reshape(shape)]
            constant += [] if needed else sums[-2:]
            kept += pieces
            ctx.pieces.append(len(pieces))
        ctx.mark_non_differentiable(*constant)
        ctx.save_for_backward(t, *flat, *kept)
        ctx.num_groups, ctx.chunk = num_groups, chunk
        ctx.set_materialize_grads(False)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, ctx.saved_tensors, grads, ctx.needs_input_grad)


class _ApartSums(torch.autograd.Function):
    """:class:`_EagerSums` twice over from the same phases: for the samples, for the frequencies.

    What flows back into the first sums reaches samples and weights only, what flows into the second
    reaches ``t`` only: two players of a game see one forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, num_groups: int | None, chunk: int, *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        sums = _EagerSums.forward(ctx, t, num_groups, chunk, *flat)
        return (*sums, *(v.clone() for v in sums))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        half = len(grads) // 2
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors  # to be unpacked once
        of_t = _gradients(ctx, saved, grads[half:], (needs[0], *(False for _ in needs[1:])))
        return of_t[0], *_gradients(ctx, saved, grads[:half], (False, *needs[1:]))[1:]


def _gradients(
    ctx: Any, saved: Sequence[Any], grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The backward of :class:`_EagerSums` for those inputs that need it."""
    t, *rest = saved
    flat, kept = rest[: 3 * len(ctx.pieces)], iter(rest[3 * len(ctx.pieces) :])
    if torch.is_grad_enabled() or any(g is not None and _operator.is_batched(g) for g in grads):
        return _differentiable(grads, t, flat, needs, ctx.num_groups, ctx.chunk)
    found: list[Tensor | None] = [None] * (3 + len(flat))
    grad_t: Tensor | None = None
    for k, (place, side) in enumerate(_sides(flat)):
        pieces = [next(kept) for _ in range(ctx.pieces[k])]
        wanted = needs[place], needs[0], needs[place + 1]
        pair = grads[2 * k : 2 * k + 2]
        if (pair[0] is None and pair[1] is None) or not any(wanted):
            continue
        folded = _folded(side, t)
        both = _folded_grads(pair, *folded[:2], ctx.num_groups)
        grad_x, grad_t, grad_w = _phases.backward(both, folded, pieces, ctx.chunk, wanted, grad_t)
        _put(found, place, side, wanted, grad_x, grad_w)
    if needs[0] and grad_t is not None:
        found[0] = grad_t.contiguous().view(t.shape)
    return tuple(found)


def _sides(flat: Sequence[Any]) -> list[tuple[int, Side]]:
    """The sides, each with the place of its samples among the arguments of the Function."""
    return [(3 + k, Side(*flat[k : k + 3])) for k in range(0, len(flat), 3)]


def _folded_grads(
    pair: Sequence[Tensor | None], x: Tensor, t: Tensor, num_groups: int | None
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
    grads: Sequence[Tensor | None],
    t: Tensor,
    flat: Sequence[Tensor | None],
    needs: Sequence[bool],
    num_groups: int | None,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The backward of the sides with a gradient of its own: one step of the graph a side."""
    found: list[Tensor | None] = [None] * (3 + len(flat))
    for k, (place, side) in enumerate(_sides(flat)):
        wanted = needs[place], needs[0], needs[place + 1]
        pair = grads[2 * k : 2 * k + 2]
        if (pair[0] is None and pair[1] is None) or not any(wanted):
            continue
        folded = _folded(side, t)
        both = _folded_grads(pair, *folded[:2], num_groups)
        grad_x, grad_t, grad_w = _operator.differentiable_backward(*both, *folded, chunk, *wanted)
        _put(found, place, side, wanted, grad_x, grad_w)
        if wanted[1]:
            grad_t = grad_t.reshape(t.shape)
            found[0] = grad_t if found[0] is None else found[0] + grad_t
    return tuple(found)


def _are_few(sides: Sequence[Side], t: Tensor) -> bool:
    """Two sides of plain samples with so few phases that calls take longer than cosines."""
    if len(sides) != 2 or t.ndim != 2:
        return False
    (x, w, _), (y, v, _) = sides
    if x.ndim != 2 or w is not None or v is not None:
        return False
    phases = (x.shape[0] + y.shape[0]) * t.shape[0]
    few = 2 * phases * t.element_size() <= min(BUDGET["few"], BUDGET["kept"])
    return few and not _fused.takes(x, t, None)


class _FewSums(torch.autograd.Function):
    """``_EagerSums`` of two sides with few phases: cosines and sines kept, and the fewest calls."""

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
            needs = (need_t, False, False, need_x, False, False, need_y, False, False)
            found = _differentiable(grads, t, (x, None, None, y, None, None), needs, None, 0)
            return found[3], found[6], found[0]
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
