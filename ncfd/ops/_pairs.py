"""Sums over pairs: the Gaussian kernel that a characteristic function's square becomes.

``E_{t ~ N(0, diag σ²)} cos⟨t, x - y⟩ = exp(-½ |σ ⊙ (x - y)|²)``. The kernel less one is what is
summed: the ones cancel in every discrepancy, and near-equal samples keep their digits.

Eager calls take the blocks of ``_kernel_blocks``, which look at the values; a compiled graph has
them as one operator. What cannot look (``torch.func``, a graph that a GPU records) or wants a graph
of its own takes plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncfd._centre import centre
from ncfd.ops import _operator
from ncfd.ops._budget import BUDGET
from ncfd.ops._kernel_blocks import (
    Block,
    Kept,
    Needs,
    Pairs,
    backward,
    forward,
    lies_apart,
    shapes,
)
from ncfd.ops._operator import is_batched, transforming


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which products keep the precision of their inputs, autocast or not."""
    # Tensors without values have no autocast to turn off, and no name for it.
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def kernel_sums(
    x: Tensor,
    y: Tensor,
    w_x: Tensor,
    w_y: Tensor,
    scale: Tensor,
    *,
    unit: Tensor | None = None,
    own: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """``Σ_ij w_i w_j (k_σ(a_i, b_j) - 1)`` over pairs in x, pairs in y, and pairs between them.

    ``x (B, N, D)``, ``y (B, M, D)``, weights ``(B, N)`` and ``(B, M)``, ``scale (K, D)``, or
    ``(K, 1)`` for isotropic ones, whose distances are formed once, -> ``(3, B)``, averaged over K
    scales. Of x the first ``own`` rows are paired with each other; M may be 0. ``unit (B, 1, 1)``,
    without a gradient, multiplies the scale in each entry. Blocks of kernel values are kept for the
    backward where ``BUDGET["pairs"]`` holds them all, and formed again otherwise: memory is linear
    in the samples. ``chunk_size`` sets the rows of a block.
    """
    own = x.shape[1] if own is None else min(own, x.shape[1])
    pairs = Pairs(x, y, w_x, w_y, scale, unit, own, chunk_size)
    if torch.compiler.is_compiling():
        if _operator._TRACES_DEPTH and _operator._graph_transforms():
            return _plain(pairs, apart=True)
        in_graph: Tensor = pair_sums(*pairs)
        return in_graph
    if transforming() or x.is_meta or _recording(x):
        return _plain(pairs, apart=not x.is_meta)
    result: Tensor = _PairSums.apply(*pairs)
    return result


def _recording(x: Tensor) -> bool:
    """While a graph of the GPU is recorded, nobody can look at a value."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


# ------------------------------------------------------------------------------------------------
# In blocks
# ------------------------------------------------------------------------------------------------


class _PairSums(torch.autograd.Function):
    """The sums block by block, with the gradient that autograd would take two products more for."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        pairs, needs = Pairs(*given), Needs(*ctx.needs_input_grad[:5])
        x, own, M = pairs.x, pairs.own, pairs.y.shape[1]
        size = x.shape[0] * (own * own + M * M + x.shape[1] * M) * x.element_size()
        several = 1 if pairs.scale.shape[1] == 1 else pairs.scale.shape[0]
        keep = any(needs) and pairs.chunk_size is None and size * several <= BUDGET["pairs"]
        with full_precision(x):
            value, kept = forward(pairs, needs if keep else None)
        blocks = [block for part in kept.parts for block in part.blocks]
        ctx.save_for_backward(*pairs[:6], *(v for block in blocks for v in block))
        empty = [part._replace(blocks=()) for part in kept.parts]
        ctx.kept = kept._replace(parts=empty) if keep else None
        ctx.rest = pairs[6:]
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pairs = Pairs(*ctx.saved_tensors[:6], *ctx.rest)
        needs = Needs(*ctx.needs_input_grad[:5])
        if torch.is_grad_enabled() or is_batched(grad):
            return (*_differentiable(pairs, grad, needs), *(None,) * 3)
        kept: Kept | None = ctx.kept
        if kept is not None:
            values = iter(ctx.saved_tensors[6:])
            parts = [
                part._replace(blocks=[Block(*(next(values) for _ in range(4))) for _ in part.tiles])
                for part in kept.parts
            ]
            kept = kept._replace(parts=parts)
        with full_precision(pairs.x):
            return (*backward(pairs, grad, kept, needs), *(None,) * 3)


def _differentiable(pairs: Pairs, grad: Tensor, needs: Needs) -> tuple[Tensor | None, ...]:
    """The gradient with a graph of its own, or of many outputs at once."""
    with torch.enable_grad():
        # Views: one tensor may stand on both sides, and each place wants its own share.
        inputs = [v.view_as(v) for v in pairs[:5]]
        x, y, w_x, w_y, scale = inputs
        same = pairs._replace(x=x, y=y, w_x=w_x, w_y=w_y, scale=scale)
        value = _plain(same, apart=lies_apart(pairs))
    wanted = [v for v, needed in zip(inputs, needs, strict=True) if needed]
    # A side without rows stands in no sum.
    found = iter(
        torch.autograd.grad(
            value,
            wanted,
            grad,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return tuple(next(found) if needed else None for needed in needs)


# ------------------------------------------------------------------------------------------------
# In a compiled graph
# ------------------------------------------------------------------------------------------------


@torch.library.custom_op("ncfd::pair_sums", mutates_args=())
def pair_sums(
    x: Tensor,
    y: Tensor,
    w_x: Tensor,
    w_y: Tensor,
    scale: Tensor,
    unit: Tensor | None,
    own: int,
    chunk_size: int | None,
) -> Tensor:
    """:func:`kernel_sums` as one operator; its blocks are formed again in the backward."""
    pairs = Pairs(x, y, w_x, w_y, scale, unit, own, chunk_size)
    with full_precision(x):
        return forward(pairs, None)[0]


@pair_sums.register_fake
def _pair_sums_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(3, x.shape[0])


@torch.library.custom_op("ncfd::pair_sums_backward", mutates_args=())
def pair_sums_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    w_x: Tensor,
    w_y: Tensor,
    scale: Tensor,
    unit: Tensor | None,
    own: int,
    chunk_size: int | None,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of the first five tensors; an empty one where not needed."""
    pairs = Pairs(x, y, w_x, w_y, scale, unit, own, chunk_size)
    with full_precision(x):
        found = backward(pairs, grad, None, Needs(*needs))
    return [x.new_empty(0) if v is None else v for v in found]


@pair_sums_backward.register_fake
def _pair_sums_backward_fake(grad: Tensor, *given: Any) -> list[Tensor]:  # noqa: ARG001 - as PyTorch calls it
    tensors, needs = given[:5], given[-1]
    return [
        given[0].new_empty(v.shape if needed else (0,))
        for v, needed in zip(tensors, needs, strict=True)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - as PyTorch calls it
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    found = pair_sums_backward(grad, *ctx.saved_tensors, *ctx.rest, needs)
    wanted = [v if needed else None for v, needed in zip(found, needs, strict=True)]
    return (*wanted, *(None,) * 3)


pair_sums.register_autograd(_backward, setup_context=_setup)


# ------------------------------------------------------------------------------------------------
# In plain operations
# ------------------------------------------------------------------------------------------------


def _plain(pairs: Pairs, *, apart: bool) -> Tensor:
    """``kernel_sums`` in operations that compose with everything.

    ``apart`` takes each pair's difference, right for rows at any place without looking at them; it
    holds D numbers for each pair of a block.
    """
    x, y, w_x, w_y = pairs[:4]
    few = slice(pairs.own)
    between = (x[:, few], w_x[:, few]) * 2, (y, w_y) * 2, (x, w_x, y, w_y)
    origins = [None, None, None] if apart else [centre(x), centre(y), centre(x)]
    with full_precision(x):
        return torch.stack(
            [
                _sum(pairs, *sides, origin)
                if sides[0].shape[1] > 0 and sides[2].shape[1] > 0
                else x.new_zeros(x.shape[0])
                for sides, origin in zip(between, origins, strict=True)
            ]
        )


def _sum(
    pairs: Pairs, x: Tensor, w_x: Tensor, y: Tensor, w_y: Tensor, origin: Tensor | None
) -> Tensor:
    """One of the sums, in blocks of rows; from differences without an ``origin``."""
    size = x.shape[0] * y.shape[1] * x.element_size() * len(shapes(pairs))
    if origin is None:
        size *= x.shape[2]
    chunk = pairs.chunk_size
    chunk = max(1, BUDGET["pairs"] // max(size, 1)) if chunk is None else chunk
    if x.shape[1] <= chunk:
        return _block(pairs, x, w_x, y, w_y, origin)
    # Imported here: in PyTorch 2.5 it brings SymPy along, which takes half a second.
    from torch.utils.checkpoint import checkpoint

    total = x.new_zeros(x.shape[0])
    for start in range(0, x.shape[1], chunk):
        part = slice(start, start + chunk)
        # No random numbers inside: nothing to save and restore but the inputs.
        total = total + checkpoint(
            _block,
            *(pairs, x[:, part], w_x[:, part], y, w_y, origin),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total


def _block(
    pairs: Pairs, x: Tensor, w_x: Tensor, y: Tensor, w_y: Tensor, origin: Tensor | None
) -> Tensor:
    """The sum over a few rows."""
    total = x.new_zeros(x.shape[0])
    for base, factors, _ in shapes(pairs):
        if origin is None:
            gap = x.unsqueeze(2) - y.unsqueeze(1)  # (B, n, M, D)
            gap = gap * (base.unsqueeze(1) if base.ndim == 3 else base)
            exponent = -0.5 * gap.square().sum(-1)
        else:
            xs, ys = (x - origin) * base, (y - origin) * base
            half, other = (0.5 * v.square().sum(-1) for v in (xs, ys))  # (B, n) and (B, M)
            exponent = _product(xs, ys.transpose(1, 2)) - other.unsqueeze(1) - half.unsqueeze(2)
            # Rounding can make the square of a small distance negative.
            exponent = exponent.clamp_max(0)
        values = exponent.expm1() if factors is None else _of_factors(exponent, factors)
        total = total + (_product(values, w_y.unsqueeze(2)).squeeze(2) * w_x).sum(1)
    return total / pairs.scale.shape[0]


def _of_factors(exponent: Tensor, factors: Tensor) -> Tensor:
    total = torch.zeros_like(exponent)
    for factor in factors:
        total = total + (exponent * factor).expm1()
    return total


class _FullProduct(torch.autograd.Function):
    """``a @ b`` in the inputs' own precision, in the backward too, whatever autocast says there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a):
            return torch.bmm(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004 - as PyTorch calls it
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return (
            _product(grad, b.transpose(1, 2)) if need_a else None,
            _product(a.transpose(1, 2), grad) if need_b else None,
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # a graph's backward runs without autocast already
        return torch.bmm(a, b)
    result: Tensor = _FullProduct.apply(a, b)
    return result
