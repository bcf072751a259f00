"""Eager kernels: phases formed once, block by block, and turned into sums or gradients.

Letters: B batch (folded), N samples, D features, F frequencies, G groups. Every kernel takes
``x (B, N, D)``, ``t (1 or B, F, D)``, ``w (B, N) | None``, ``groups (B, N) int64 | None``, all
floating tensors of one dtype (float32 or float64), and runs without autograd.

A block of phases θ ``(b, n, F)`` is held as something else where that is cheaper: on a CPU as
``u = tan(θ/2)``, since

    sin θ = u / (½ + ½u²)        cos θ = 1 - u sin θ

make one transcendental function serve cosine and sine of the forward pass and the slope of the
backward pass; each of them costs as much as ten multiplications. On an accelerator, where every
operation is a trip to memory, θ itself is held and the cosine taken three times.

Both are accurate to rounding everywhere: near θ = π, where u is large, an error in u turns the
point by ``2 du / (1 + u²)``, less than u's relative error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ncfd.ops import _fused, _threads
from ncfd.ops._budget import BUDGET, SMALL_DIM

# Rows that may be added one after the other in float32: 1e3 terms lose about 1e-7 of a mean.
_SEQUENTIAL_ROWS = 1024
# Up to this many groups a product with the indicator matrix beats scattered additions on the CPU.
_INDICATOR_GROUPS = 64

Block = tuple[slice, slice]
#: Samples (B, N, D), frequencies (1 or B, F, D), weights and labels (B, N) or None.
Folded = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def keeps_phases(x: Tensor, t: Tensor, groups: Tensor | None) -> bool:
    """Whether the backward reuses the forward's phases: if the budget holds them."""
    if _fused.takes(x, t, groups):  # and never stores a phase
        return False
    return x.shape[:-1].numel() * t.shape[-2] * x.element_size() <= BUDGET["kept"]


def _block_rows(x: Tensor, t: Tensor, chunk: int) -> int:
    """Rows of one block of phases: the caller's choice, or what the budget allows."""
    if chunk > 0:
        return chunk
    if x.device.type != "cpu":
        block = BUDGET["block_accelerator"]
    else:
        block = BUDGET["block_small_dim" if x.shape[2] < SMALL_DIM else "block_large_dim"]
    return max(1, block // (t.shape[1] * x.element_size()))


class _Spot(NamedTuple):
    """A block of rows of a piece of the samples; the phases of a piece are held together."""

    phases: Tensor | None  # of the block, (b, n, F), where they are kept
    piece: Block
    block: Block

    def of(self, v: Tensor) -> Tensor:
        """Its share of what there is for each sample, (B, N) or (B, N, D)."""
        return v[self.piece][self.block]

    def of_any(self, v: Tensor | None) -> Tensor | None:
        return None if v is None else self.of(v)

    def batches(self, v: Tensor) -> Tensor:
        """Its share of what there is for each batch, or for all together."""
        return v if v.shape[0] == 1 else v[self.piece[0]][self.block[0]]

    @property
    def is_first(self) -> bool:
        """Whether no block before it has a row of its batches."""
        rows_before: int = self.piece[1].start + self.block[1].start
        return rows_before == 0


def _spots(x: Tensor, pieces: Iterable[Block], kept: Sequence[Tensor], limit: int) -> list[_Spot]:
    found = []
    for k, piece in enumerate(pieces):
        batch, rows, _ = x[piece].shape
        for block in _blocks(batch, rows, limit):
            found.append(_Spot(kept[k][block] if kept else None, piece, block))
    return found


def _fitting(v: Tensor, x: Tensor, num_freqs: int) -> Tensor:
    """``v``, or fresh memory: for the first block, and for a shorter last one."""
    shape = (*x.shape[:2], num_freqs)
    return v if v.shape == shape else x.new_empty(shape)


def _threads_for(x: Tensor, t: Tensor, chunk: int) -> int:
    """How many threads share the blocks, where these are small and many."""
    blocks = x.shape[:2].numel() * t.shape[1] * x.element_size() // BUDGET["block_small_dim"]
    if chunk > 0 or x.shape[2] >= SMALL_DIM or t.shape[0] > 1 or blocks < 8:
        return 1
    threads = _threads.count(x)
    return threads if blocks >= 4 * threads else 1


def _blocks(batch: int, rows: int, limit: int) -> Iterator[Block]:
    """Cut ``(batch, rows)`` into blocks of at most ``limit`` rows, whole batches if they fit."""
    if rows > limit:
        for b in range(batch):
            for n in range(0, rows, limit):
                yield slice(b, b + 1), slice(n, min(n + limit, rows))
    else:
        step = max(1, limit // max(rows, 1))
        for b in range(0, batch, step):
            yield slice(b, min(b + step, batch)), slice(0, rows)


def _pieces(x: Tensor, t: Tensor, split: bool) -> list[Block]:
    """Cut the rows into pieces whose phases are kept as one tensor each.

    A CPU's allocator hands large tensors back to the system and faults every page in again at the
    next step, which costs more than the cosines; several of moderate size it keeps.
    """
    batch, rows, _ = x.shape
    if split and x.device.type == "cpu":
        limit = max(1, BUDGET["piece"] // (t.shape[1] * x.element_size()))
        return list(_blocks(batch, rows, limit))
    return [(slice(0, batch), slice(0, rows))]


def _places(kept: Sequence[Tensor], x: Tensor) -> Iterator[Block]:
    """Where the kept pieces lie in ``x``: by their own sizes, as ``BUDGET`` may have changed."""
    batch, rows, _ = x.shape
    if len(kept) == 0:
        yield slice(0, batch), slice(0, rows)
    b = n = 0
    for piece in kept:
        count, length = piece.shape[:2]
        yield slice(b, b + count), slice(n, n + length)
        n += length
        if n == rows:
            b, n = b + count, 0


#: Adds the rows of a block: ``(b, n, F) -> (b, G, F)``.
Reduce = Callable[[Tensor], Tensor]


class Circle(Protocol):
    """What a form has to offer. ``held`` is never changed; ``spare`` may be overwritten."""

    #: The product ``⟨t, x⟩`` is formed with this factor.
    factor: float

    def enter(self, theta: Tensor) -> None:
        """Turn ``factor · θ`` into what is held, in place."""

    def sums(
        self, held: Tensor, reduce: Reduce, count: Tensor | int, spare: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``(Σ w cos θ, Σ w sin θ)``, each ``(b, G, F)``; ``count`` is ``Σ w``."""

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Two ``(B, G, F)`` for ``slopes``, from ``a`` and ``b``, the gradients of the sums."""

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        """``b cos θ - a sin θ``, the gradient for θ, with what was prepared at each row."""

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """``Σ_f (a cos θ + b sin θ)``, the gradient for the weights, ``(b, n)``."""


def _one_plus_square(u: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.addcmul(u.new_ones(()), u, u, out=out)


class HalfTangent:
    """Holds ``u = tan(θ/2)``."""

    factor = 0.5

    def enter(self, theta: Tensor) -> None:
        theta.tan_()

    def sums(
        self, held: Tensor, reduce: Reduce, count: Tensor | int, spare: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sine = torch.addcmul(held.new_full((), 0.5), held, held, value=0.5, out=spare)
        torch.div(held, sine, out=sine)
        sin_sum = reduce(sine)
        return count - reduce(sine.mul_(held)), sin_sum

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        return grad_cos, -grad_sin

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        # a = first, -b = second; b cos - a sin = -b - 2 (a u - b) / (1 + u²)
        top = torch.addcmul(second, held, first)
        out = _one_plus_square(held, out)
        return torch.addcdiv(second, top, out, value=-2, out=out)

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # a cos + b sin = 2 (a + b u) / (1 + u²) - a
        top = torch.addcmul(first, held, second, value=-1)
        return top.mul_(2).div_(_one_plus_square(held)).sub_(first).sum(2)


class Angle:
    """Holds θ."""

    factor = 1.0

    def enter(self, theta: Tensor) -> None:
        pass

    def sums(
        self,
        held: Tensor,
        reduce: Reduce,
        count: Tensor | int,  # noqa: ARG002 - of the protocol
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        cosine = torch.cos(held, out=spare)
        cos_sum = reduce(cosine)
        return cos_sum, reduce(torch.sin(held, out=cosine))

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        # a = R sin δ and b = R cos δ: the slope is R cos(θ + δ), one cosine instead of two.
        return torch.hypot(grad_cos, grad_sin), torch.atan2(grad_cos, grad_sin)

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        return torch.add(held, second, out=out).cos_().mul_(first)

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (held + second).sin_().mul_(first).sum(2)


_HALF_TANGENT, _ANGLE = HalfTangent(), Angle()


def circle(device: torch.device) -> Circle:
    """The form for tensors on ``device``."""
    return _HALF_TANGENT if device.type == "cpu" else _ANGLE


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    # Under autocast the product would run in half precision: phases would be 0.2 % wrong.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _hold(x: Tensor, t: Tensor, form: Circle, out: Tensor | None = None) -> Tensor:
    """Phases ``⟨t, x⟩`` in the given form: ``x (b, n, D)``, ``t (1 or b, F, D)`` -> (b, n, F)."""
    b, n, dim = x.shape
    # With beta = 0 the first argument only lends its memory or its shape.
    if t.shape[0] == 1:
        out = x.new_empty(b, n, t.shape[1]) if out is None else out
        flat = out.view(b * n, -1)
        torch.addmm(flat, x.reshape(b * n, dim), t[0].T, beta=0, alpha=form.factor, out=flat)
    else:
        out = x.new_empty(b, n, t.shape[1]) if out is None else out
        torch.baddbmm(out, x, t.transpose(1, 2), beta=0, alpha=form.factor, out=out)
    form.enter(out)
    return out


def features(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``(cos⟨t, x⟩, sin⟨t, x⟩)`` before any summing: ``x (N, D)``, ``t (F, D)`` -> two ``(N, F)``.

    For callers that add the same rows many times under different weights (a permutation test).
    Differentiable by plain autograd; not bounded in memory: pass as many rows as should be held.
    """
    with torch.autocast(x.device.type, enabled=False):
        theta = x @ t.T
    return torch.cos(theta), torch.sin(theta)


def _reducer(x: Tensor, w: Tensor | None, groups: Tensor | None, num_groups: int) -> Reduce:
    """Weighted group sums of one block: a function of values ``(b, n, F)`` -> ``(b, G, F)``."""
    b, n, _ = x.shape
    on_cpu = x.device.type == "cpu"
    if groups is None:
        if w is None:
            return lambda values: values.sum(1, keepdim=True)
        if on_cpu:
            return lambda values: torch.bmm(w.unsqueeze(1), values)
        # No product here on an accelerator: TF32 would round the cosines to 11 bits.
        return lambda values: (values * w.unsqueeze(2)).sum(1, keepdim=True)

    def add_rows(values: Tensor) -> Tensor:
        weighted = values if w is None else values * w.unsqueeze(2)
        offset = torch.arange(b, device=groups.device).unsqueeze(1) * num_groups
        sums = values.new_zeros(b * num_groups, values.shape[2])
        sums.index_add_(0, (groups + offset).reshape(-1), weighted.reshape(b * n, -1))
        return sums.view(b, num_groups, -1)

    if not (on_cpu and num_groups <= _INDICATOR_GROUPS):
        return add_rows
    indicator = x.new_zeros(b, num_groups, n)
    ones = x.new_ones(b, 1, n) if w is None else w.unsqueeze(1)
    indicator.scatter_(1, groups.unsqueeze(1), ones)

    def multiply(values: Tensor) -> Tensor:
        sums = torch.bmm(indicator, values)
        # 0 · NaN is NaN: the product would spread one bad row over all groups. Add row by row.
        return sums if bool(torch.isfinite(sums).all()) else add_rows(values)

    return multiply


def _block_sums(
    held: Tensor,
    w: Tensor | None,
    groups: Tensor | None,
    num_groups: int,
    form: Circle,
    spare: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    reduce = _reducer(held, w, groups, num_groups)
    n = held.shape[1]
    count = n if w is None and groups is None else reduce(held.new_ones(len(held), n, 1))
    return form.sums(held, reduce, count, spare)


def forward(
    x: Tensor,
    t: Tensor,
    w: Tensor | None,
    groups: Tensor | None,
    num_groups: int,
    chunk: int,
    keep: bool,
    split: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``(Σ w cos, Σ w sin)``, each ``(B, G, F)``, and the phases if ``keep``.

    The phases come in the device's form, in pieces of rows, or with ``split=False`` as one tensor
    ``(B, N, F)``.
    """
    batch, rows, _ = x.shape
    num_freqs = t.shape[1]
    if not keep and _fused.takes(x, t, groups):
        return *_fused.forward(x, t, w), []
    form = circle(x.device)
    limit = _block_rows(x, t, chunk)
    if w is not None or groups is not None:
        # Products and scattered additions sum a block's rows one after the other in float32 (plain
        # sums do it pairwise): short blocks, added in float64, keep φ far below its noise.
        limit = min(limit, _SEQUENTIAL_ROWS if x.device.type == "cpu" else 16 * _SEQUENTIAL_ROWS)
    with autocast_off(x.device):
        if batch * rows <= limit:
            held = _hold(x, t, form)
            cos_sum, sin_sum = _block_sums(held, w, groups, num_groups, form)
            return cos_sum, sin_sum, [held] if keep else []

        threads = _threads_for(x, t, chunk)
        pieces = [*_pieces(x, t, split and keep)]
        kept = [x.new_empty(*x[piece].shape[:2], num_freqs) for piece in pieces] if keep else []
        spots = _spots(x, pieces, kept, max(1, limit // threads))  # each holds a block
        # F numbers per group: adding the blocks in float64 costs nothing and loses nothing.
        wide = x.dtype if x.device.type == "mps" else torch.float64

        def add(some: Sequence[_Spot]) -> tuple[Tensor, Tensor]:
            cos_sum = torch.zeros(batch, num_groups, num_freqs, dtype=wide, device=x.device)
            sin_sum = torch.zeros_like(cos_sum)
            held = spare = x.new_empty(0)
            for spot in some:
                xb = spot.of(x)
                spare = _fitting(spare, xb, num_freqs)
                held = _fitting(held, xb, num_freqs) if spot.phases is None else spot.phases
                _hold(xb, spot.batches(t), form, out=held)  # contiguous either way
                w_, groups_ = spot.of_any(w), spot.of_any(groups)
                cos_part, sin_part = _block_sums(held, w_, groups_, num_groups, form, spare)
                spot.batches(cos_sum).add_(cos_part)
                spot.batches(sin_sum).add_(sin_part)
            return cos_sum, sin_sum

        (cos_sum, sin_sum), *others = _threads.each(add, spots, threads)
        for cos_part, sin_part in others:
            cos_sum += cos_part
            sin_sum += sin_part
    return cos_sum.to(x.dtype), sin_sum.to(x.dtype), kept


def backward(
    grads: tuple[Tensor, Tensor],
    side: Folded,
    kept: Sequence[Tensor],
    chunk: int,
    needs: tuple[bool, bool, bool],
    grad_t: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sums for ``x``, ``t``, ``w`` (empty where not needed).

    With ``a``, ``b`` the incoming gradients of Σ cos and Σ sin at a row's group, ``∂/∂θ`` is
    ``e = w (b cos θ - a sin θ)``; then ``dx = e t`` and ``dt = eᵀ x``.
    ``kept`` is what ``forward`` returned; empty to form the phases again. ``grad_t`` is an earlier
    result for the same ``t``, to be added to in place. That for ``t`` may be transposed in memory.
    """
    x, t, w, groups = side
    if len(kept) == 0 and _fused.takes(x, t, groups):
        return _fused.backward(grads, x, t, w, needs, grad_t)
    batch, rows, dim = x.shape
    num_freqs, shared = t.shape[1], t.shape[0] == 1
    need_x, need_t, need_w = needs
    form = circle(x.device)
    prepared = form.prepare(*grads)  # twice (B, G, F)
    limit = _block_rows(x, t, chunk)
    # A product (D, n)(n, F) is a fifth faster than its transpose while D is small.
    turn = shared and x.device.type == "cpu" and dim < SMALL_DIM
    grad_filled = grad_t is not None  # the first block writes, the others add
    if grad_t is None:
        grad_t = _room_for(t, turn) if need_t else t.new_empty(0)
    with autocast_off(x.device):
        if batch * rows <= limit and len(kept) <= 1:
            held = kept[0] if kept else _hold(x, t, form)
            slopes, grad_w = _block_slopes(held, prepared, w, groups, need_w, form)
            into_t = grad_t if need_t else None
            grad_x = _whole_gradients(slopes, x, t, need_x, into_t, turn, grad_filled)
            return grad_x, grad_t, grad_w

        threads = _threads_for(x, t, chunk)
        grad_x = x.new_empty(x.shape if need_x else (0,))
        grad_w = x.new_empty((batch, rows) if need_w else (0,))
        spots = _spots(x, _places(kept, x), kept, max(1, limit // threads))

        def add(some: Sequence[_Spot]) -> Tensor:
            own, filled = grad_t, grad_filled
            if some[0] is not spots[0]:  # another thread's
                own, filled = torch.empty_like(grad_t), False
            held = spare = x.new_empty(0)
            for spot in some:
                xb, tb = spot.of(x), spot.batches(t)
                spare = _fitting(spare, xb, num_freqs)
                held = _fitting(held, xb, num_freqs) if spot.phases is None else spot.phases
                held = _hold(xb, tb, form, out=held) if spot.phases is None else held
                here = spot.batches(prepared[0]), spot.batches(prepared[1])
                w_, groups_ = spot.of_any(w), spot.of_any(groups)
                slopes, slopes_w = _block_slopes(held, here, w_, groups_, need_w, form, spare)
                if need_w:
                    spot.of(grad_w).copy_(slopes_w)
                into_x = spot.of(grad_x) if need_x else None
                into_t = spot.batches(own) if need_t else None
                begun = filled or not (shared or spot.is_first)
                _add_gradients(slopes, xb, tb, into_x, into_t, turn, begun)
                filled = filled or shared
            return own

        for other in _threads.each(add, spots, threads)[1:]:
            grad_t += other
    return grad_x, grad_t, grad_w


def _room_for(t: Tensor, turn: bool) -> Tensor:
    """Memory for a gradient of ``t``, transposed where the products are."""
    one, F, D = t.shape
    return t.new_empty(one, D, F).transpose(1, 2) if turn else t.new_empty(t.shape)


def _whole_gradients(
    slopes: Tensor,
    x: Tensor,
    t: Tensor,
    need_x: bool,
    into_t: Tensor | None,
    turn: bool,
    filled: bool,
) -> Tensor:
    """The gradient for x of all rows at once; that for t is added to ``into_t``, or written."""
    flat, flat_x = slopes.view(-1, t.shape[1]), x.reshape(-1, x.shape[2])
    shared = t.shape[0] == 1
    grad_x = x.new_empty(0)
    if need_x:
        grad_x = torch.mm(flat, t[0]).view_as(x) if shared else torch.bmm(slopes, t)
    if into_t is not None and shared:
        _add_product(into_t[0], flat, flat_x, turn, filled)
    elif into_t is not None:
        torch.baddbmm(into_t, slopes.transpose(1, 2), x, beta=int(filled), out=into_t)
    return grad_x


def _add_gradients(
    slopes: Tensor,
    x: Tensor,
    t: Tensor,
    into_x: Tensor | None,
    into_t: Tensor | None,
    turn: bool,
    filled: bool,
) -> None:
    """A block's gradients; that for ``t`` is added to what is there, or written."""
    if len(t) > 1:  # frequencies (b, F, D) of its own
        if into_x is not None:
            into_x.copy_(torch.bmm(slopes, t))
        if into_t is not None:
            partial = torch.bmm(slopes.transpose(1, 2), x)
            into_t.copy_(into_t + partial if filled else partial)
        return
    flat = slopes.view(-1, t.shape[1])
    if into_x is not None:
        torch.mm(flat, t[0], out=into_x.view(-1, x.shape[2]))
    if into_t is not None:
        _add_product(into_t[0], flat, x.reshape(-1, x.shape[2]), turn, filled)


def _add_product(into: Tensor, slopes: Tensor, x: Tensor, turn: bool, filled: bool) -> None:
    """``into (F, D) += slopesᵀ x``, or written if not ``filled``; ``turn``: as its transpose."""
    left, right = slopes.T, x
    if turn:
        into, left, right = into.T, x.T, slopes
    torch.addmm(into, left, right, beta=int(filled), out=into)


def _block_slopes(
    held: Tensor,
    prepared: tuple[Tensor, Tensor],
    w: Tensor | None,
    groups: Tensor | None,
    need_w: bool,
    form: Circle,
    spare: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``w (b cos θ - a sin θ)``, (b, n, F), and the gradient of the weights (empty if not needed).

    ``prepared`` are two ``(b, G, F)``.
    """
    first, second = prepared
    if groups is not None:
        b, num_groups, num_freqs = first.shape
        offset = torch.arange(b, device=held.device).unsqueeze(1) * num_groups
        index = (groups + offset).reshape(-1)
        first = first.reshape(-1, num_freqs).index_select(0, index).view(held.shape)
        second = second.reshape(-1, num_freqs).index_select(0, index).view(held.shape)
    grad_w = form.slopes_of_weights(held, first, second) if need_w else held.new_empty(0)
    slopes = form.slopes(held, first, second, spare)
    if w is not None:
        slopes.mul_(w.unsqueeze(2))
    return slopes, grad_w
