"""Sums over pairs: the Gaussian kernel that a characteristic function's square becomes.

``E_{t ~ N(0, diag σ²)} cos⟨t, x - y⟩ = exp(-½ |σ ⊙ (x - y)|²)``. The kernel less one is what is
summed: the ones cancel in every discrepancy, and near-equal samples keep their digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ncfd.ops._budget import BUDGET
from ncfd.ops._operator import is_batched, transforming

#: Rows and columns of a block of kernel values: inside a core's cache on a CPU, where each value
#: is passed over six times; few launches on an accelerator.
_EDGE = {"cpu": 256, "accelerator": 4096}


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which products keep the precision of their inputs, autocast or not."""
    # Tensors without values have no autocast to turn off, and no name for it.
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class _FullProduct(torch.autograd.Function):
    """``a @ b`` in the inputs' own precision, in the backward too, whatever autocast says there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a):
            return torch.bmm(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
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


def _block(x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, scale: Tensor) -> Tensor:
    """``Σ_ij w_i w_j (k(x_i, y_j) - 1)``, mean over components: ``x (B, n, D)`` -> ``(B,)``."""
    total = x.new_zeros(x.shape[0])
    for component in scale:  # K is a handful; each needs its own product
        xs, ys = x * component, y * component
        half = 0.5 * xs.square().sum(-1)  # (B, n)
        other = 0.5 * ys.square().sum(-1)
        exponent = _product(xs, ys.transpose(1, 2)) - other.unsqueeze(1) - half.unsqueeze(2)
        # Rounding can make the square of a small distance between large numbers negative.
        kernel = torch.expm1(exponent.clamp_max(0))  # (B, n, M)
        total = total + (_product(kernel, w_y.unsqueeze(2)).squeeze(2) * w_x).sum(1)
    return total / scale.shape[0]


def kernel_sums(
    x: Tensor,
    y: Tensor | None,
    w_x: Tensor,
    w_y: Tensor | None,
    scale: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    """``Σ_ij w_i w_j (k_σ(x_i, y_j) - 1)`` for each batch entry, averaged over K scales.

    ``x (B, N, D)``, ``y (B, M, D)``, weights ``(B, N)`` and ``(B, M)``, ``scale (K, D)`` ->
    ``(B,)``. Without ``y`` and ``w_y`` the pairs are those of ``x`` with itself: each is formed
    once. Blocks of kernel values are kept for the backward where ``BUDGET["pairs"]`` holds them
    all, and formed again otherwise: memory is linear in the samples. ``chunk_size`` sets the rows
    of a block.
    """
    if torch.compiler.is_compiling() or transforming() or x.is_meta:
        other, w_other = (x, w_x) if y is None or w_y is None else (y, w_y)
        return _plain(x, other, w_x, w_other, scale, chunk_size)
    value: Tensor = _PairSums.apply(x, y, w_x, w_y, scale, chunk_size)
    return value


def _plain(
    x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, scale: Tensor, chunk_size: int | None
) -> Tensor:
    """``kernel_sums`` in operations that compose with everything."""
    batch, rows, _ = x.shape
    pairs = batch * y.shape[1] * x.element_size() * scale.shape[0]
    chunk = chunk_size if chunk_size is not None else max(1, BUDGET["pairs"] // max(pairs, 1))
    with full_precision(x):
        if rows <= chunk:
            return _block(x, y, w_x, w_y, scale)
        # Imported here: in PyTorch 2.5 it brings SymPy along, which takes half a second.
        from torch.utils.checkpoint import checkpoint

        total = x.new_zeros(batch)
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            # No random numbers inside: nothing to save and restore but the inputs.
            total = total + checkpoint(
                _block,
                x[:, part],
                y,
                w_x[:, part],
                w_y,
                scale,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total


def _augmented(x: Tensor, component: Tensor, *, left: bool) -> Tensor:
    """Scaled samples with two columns more, so that one product gives ``-½|x - y|²``, whole.

    ``(x, ½|x|², 1)`` on the left, ``(y, -1, -½|y|²)`` on the right.
    """
    batch, rows, dim = x.shape
    found = x.new_empty(batch, rows, dim + 2)
    scaled, norm, one = found[..., :dim], dim + (not left), dim + left
    torch.mul(x, component, out=scaled)
    half = torch.linalg.vector_norm(scaled, dim=2).square_().mul_(0.5)
    sign = 1 if left else -1
    found[..., norm] = half.mul_(sign)
    found[..., one] = sign
    return found


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    """``k - 1`` of augmented samples, (B, n, m)."""
    # Rounding can make the square of a small distance between large numbers negative.
    return torch.bmm(left, right.transpose(1, 2)).clamp_max_(0).expm1_()


def _blocks(
    x: Tensor, y: Tensor | None, chunk_size: int | None
) -> Iterator[tuple[slice, slice, int]]:
    """Parts of the rows of x and y, and how often their pairs count (twice off the diagonal)."""
    batch, N, _ = x.shape
    edge = _EDGE["cpu" if x.device.type == "cpu" else "accelerator"]
    edge = max(32, int(edge / batch**0.5))
    if y is None:
        edge = edge if chunk_size is None else min(edge, chunk_size)
        parts = [slice(k, k + edge) for k in range(0, N, edge)]
        for k, rows in enumerate(parts):
            for columns in parts[k:]:
                yield rows, columns, 1 if rows == columns else 2
        return
    width = min(y.shape[1], edge)
    height = max(edge, edge * edge // width) if chunk_size is None else chunk_size
    for k in range(0, N, height):
        for j in range(0, y.shape[1], width):
            yield slice(k, k + height), slice(j, j + width), 1


class _PairSums(torch.autograd.Function):
    """The sums block by block, with the gradient that autograd would take two products more for.

    With ``G = w_i w_j k(x_i, y_j)`` and r and c its sums over rows and columns,
    ``∂/∂x = σ² (G y - r x)``, and ``∂/∂σ_d = σ_d Σ (2 x_d (G y)_d - r x_d² - c y_d²)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        w_x: Tensor,
        w_y: Tensor | None,
        scale: Tensor,
        chunk_size: int | None,
    ) -> Tensor:
        batch, N, _ = x.shape
        M = N if y is None else y.shape[1]
        size = batch * N * M * scale.shape[0] * x.element_size()
        keep = any(ctx.needs_input_grad) and chunk_size is None and size <= BUDGET["pairs"]
        kept = []
        total = torch.zeros(
            batch, dtype=x.dtype if x.device.type == "mps" else torch.float64, device=x.device
        )
        with full_precision(x):
            other, w_other = (x, w_x) if y is None or w_y is None else (y, w_y)
            for component in scale:
                left = _augmented(x, component, left=True)
                right = _augmented(other, component, left=False)
                for rows, columns, count in _blocks(x, y, chunk_size):
                    kernel = _kernel(left[:, rows], right[:, columns])
                    if keep:
                        kept.append(kernel)
                    part = torch.bmm(kernel, w_other[:, columns].unsqueeze(2)).squeeze(2)
                    total += count * (part * w_x[:, rows]).sum(1)
        ctx.save_for_backward(x, y, w_x, w_y, scale, *kept)
        ctx.chunk_size = chunk_size
        return (total / scale.shape[0]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, w_x, w_y, scale, *kept = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched(grad):
            return _differentiable(ctx, grad)
        need_x, need_y, _, _, need_scale, _ = ctx.needs_input_grad
        alone = y is None
        # Either product gives the gradient of the scale.
        left_product = need_x or (need_scale and not need_y)
        grads = [
            torch.zeros_like(v) if needed and v is not None else None
            for v, needed in zip((x, y, w_x, w_y, scale), ctx.needs_input_grad, strict=False)
        ]
        grad_x, grad_y, grad_wx, grad_wy, grad_scale = grads
        g = (grad / scale.shape[0]).reshape(-1, 1)  # (B, 1)
        blocks = iter(kept)
        other, w_other = (x, w_x) if alone else (y, w_y)
        with full_precision(x):
            for k, component in enumerate(scale):
                if not kept:
                    left = _augmented(x, component, left=True)
                    right = _augmented(other, component, left=False)
                r, c = torch.zeros_like(w_x), torch.zeros_like(w_other)
                # G y and Gᵀ x; what only the scale wants is not stored.
                gy = torch.zeros_like(x) if need_x else None
                gx = torch.zeros_like(other) if need_y else None
                cross = torch.zeros_like(component)
                for rows, columns, count in _blocks(x, y, ctx.chunk_size):
                    xs, ys = x[:, rows], other[:, columns]
                    w, v = g * w_x[:, rows], w_other[:, columns]
                    kernel = next(blocks) if kept else _kernel(left[:, rows], right[:, columns])
                    if grad_wx is not None:
                        grad_wx[:, rows] += g * torch.bmm(kernel, v.unsqueeze(2)).squeeze(2)
                    into = grad_wy if not alone else grad_wx if count == 2 else None
                    if into is not None:
                        into[:, columns] += torch.bmm(w.unsqueeze(1), kernel).squeeze(1)
                    if not (need_x or need_y or need_scale):
                        continue
                    G = (kernel + 1).mul_(w.unsqueeze(2)).mul_(v.unsqueeze(1))
                    r[:, rows] += G.sum(2)
                    if not alone or count == 2:
                        (r if alone else c)[:, columns] += G.sum(1)
                    if left_product:
                        product = torch.bmm(G, ys)
                        if gx is None and need_scale:
                            cross += count * (product * xs).sum((0, 1))
                        if gy is not None:
                            gy[:, rows] += product
                    if gx is not None:
                        product = torch.bmm(G.transpose(1, 2), xs)
                        gx[:, columns] += product
                        if need_scale:
                            cross += (product * ys).sum((0, 1))
                    elif gy is not None and count == 2:
                        gy[:, columns] += torch.bmm(G.transpose(1, 2), xs)
                squared = component.square()
                if grad_x is not None and gy is not None:
                    grad_x += (2 if alone else 1) * squared * (gy - r.unsqueeze(2) * x)
                if grad_y is not None and gx is not None:
                    grad_y += squared * (gx - c.unsqueeze(2) * other)
                if grad_scale is not None:
                    own = _weighed_squares(r, x)
                    apart = own if alone else _weighed_squares(c, other)
                    grad_scale[k] = component * (2 * cross - own - apart)
        if grad_wx is not None and alone:
            grad_wx *= 2
        return grad_x, grad_y, grad_wx, grad_wy, grad_scale, None


def _weighed_squares(w: Tensor, x: Tensor) -> Tensor:
    """``Σ_bn w_bn x_bnd²``, (D,): in pieces that a cache holds."""
    step = _EDGE["cpu"]
    pieces = zip(torch.split(w, step, 1), torch.split(x, step, 1), strict=True)
    return sum(
        (torch.matmul(v.unsqueeze(1), piece.square()).sum((0, 1)) for v, piece in pieces),
        start=x.new_zeros(x.shape[2]),
    )


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient with a graph of its own, or of many outputs at once."""
    with torch.enable_grad():
        # Views: one tensor may stand on both sides, and each place wants its own share.
        inputs: list[Any] = [None if v is None else v.view_as(v) for v in ctx.saved_tensors[:5]]
        x, y, w_x, w_y, scale = inputs
        other, w_other = (x, w_x) if y is None else (y, w_y)
        value = _plain(x, other, w_x, w_other, scale, ctx.chunk_size)
    wanted = [v for v, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(value, wanted, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
