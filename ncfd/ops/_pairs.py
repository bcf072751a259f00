"""Sums over pairs: the Gaussian kernel that a characteristic function's square becomes.

``E_{t ~ N(0, diag σ²)} cos⟨t, x - y⟩ = exp(-½ |σ ⊙ (x - y)|²)``. The kernel less one is what is
summed: the ones cancel in every discrepancy, and near-equal samples keep their digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ncfd.ops._budget import BUDGET


def _full_precision(x: Tensor) -> torch.autocast:
    # Tensors without values have no autocast to turn off, and no name for it.
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class _FullProduct(torch.autograd.Function):
    """``a @ b`` in the inputs' own precision, in the backward too, whatever autocast says there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with _full_precision(a):
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
    x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, scale: Tensor, chunk_size: int | None = None
) -> Tensor:
    """``Σ_ij w_i w_j (k_σ(x_i, y_j) - 1)`` for each batch entry, averaged over K scales.

    ``x (B, N, D)``, ``y (B, M, D)``, weights ``(B, N)`` and ``(B, M)``, ``scale (K, D)`` ->
    ``(B,)``. Without ``chunk_size`` the rows of ``x`` are cut so that a block fits the budget, and
    formed again in the backward, so that memory stays linear in the samples.
    """
    batch, rows, _ = x.shape
    pairs = batch * y.shape[1] * x.element_size() * scale.shape[0]
    chunk = chunk_size if chunk_size is not None else max(1, BUDGET["pairs"] // max(pairs, 1))
    with _full_precision(x):
        if rows <= chunk:
            return _block(x, y, w_x, w_y, scale)
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
