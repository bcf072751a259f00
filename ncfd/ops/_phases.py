"""Eager kernels: phases formed once, block by block, and turned into sums or gradients.

Letters: B batch (folded), N samples, D features, F frequencies, G groups. Every kernel takes
``x (B, N, D)``, ``t (1 or B, F, D)``, ``w (B, N) | None``, ``groups (B, N) int64 | None``, all
floating tensors of one dtype (float32 or float64), and runs without autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ncfd.ops._budget import BUDGET, SMALL_DIM

# Rows that may be added one after the other in float32: 1e3 terms lose about 1e-7 of a mean.
_SEQUENTIAL_ROWS = 1024
# Up to this many groups a product with the indicator matrix beats scattered additions on the CPU.
_INDICATOR_GROUPS = 64


def keeps_phases(x: Tensor, t: Tensor) -> bool:
    """Whether the backward reuses the forward's phases: if the budget holds them."""
    return x.shape[0] * x.shape[1] * t.shape[1] * x.element_size() <= BUDGET["kept"]


def _block_rows(x: Tensor, t: Tensor, chunk: int) -> int:
    """Rows of one block of phases: the caller's choice, or what the budget allows."""
    if chunk > 0:
        return chunk
    if x.device.type != "cpu":
        block = BUDGET["block_accelerator"]
    else:
        block = BUDGET["block_small_dim" if x.shape[2] < SMALL_DIM else "block_large_dim"]
    return max(1, block // (t.shape[1] * x.element_size()))


def _blocks(batch: int, rows: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``(batch, rows)`` into blocks of at most ``limit`` rows, whole batches if they fit."""
    if rows > limit:
        for b in range(batch):
            for n in range(0, rows, limit):
                yield slice(b, b + 1), slice(n, min(n + limit, rows))
    else:
        step = max(1, limit // max(rows, 1))
        for b in range(0, batch, step):
            yield slice(b, min(b + step, batch)), slice(0, rows)


def _autocast_off(device: torch.device) -> AbstractContextManager[object]:
    # Under autocast the product would run in half precision: phases would be 0.2 % wrong.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def phases(x: Tensor, t: Tensor, out: Tensor | None = None) -> Tensor:
    """``⟨t, x⟩``: ``x (b, n, D)``, ``t (1 or b, F, D)`` -> ``(b, n, F)``."""
    b, n, dim = x.shape
    if t.shape[0] == 1:
        flat = None if out is None else out.view(b * n, -1)
        return torch.mm(x.reshape(b * n, dim), t[0].T, out=flat).view(b, n, -1)
    return torch.bmm(x, t.transpose(1, 2), out=out)


def features(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``(cos⟨t, x⟩, sin⟨t, x⟩)`` before any summing: ``x (N, D)``, ``t (F, D)`` -> two ``(N, F)``.

    For callers that add the same rows many times under different weights (a permutation test).
    Differentiable by plain autograd; not bounded in memory: pass as many rows as should be held.
    """
    with torch.autocast(x.device.type, enabled=False):
        theta = x @ t.T
    return torch.cos(theta), torch.sin(theta)


def _reduce(values: Tensor, w: Tensor | None, groups: Tensor | None, num_groups: int) -> Tensor:
    """Weighted group sums of one block: ``values (b, n, F)`` -> ``(b, G, F)``."""
    b, n, num_freqs = values.shape
    on_cpu = values.device.type == "cpu"
    if groups is None:
        if w is None:
            return values.sum(1, keepdim=True)
        if on_cpu:
            return torch.bmm(w.unsqueeze(1), values)
        # No product here on an accelerator: TF32 would round the cosines to 11 bits.
        return (values * w.unsqueeze(2)).sum(1, keepdim=True)
    if on_cpu and num_groups <= _INDICATOR_GROUPS:
        indicator = values.new_zeros(b, num_groups, n)
        ones = values.new_ones(b, 1, n) if w is None else w.unsqueeze(1)
        indicator.scatter_(1, groups.unsqueeze(1), ones)
        sums = torch.bmm(indicator, values)
        if bool(torch.isfinite(sums).all()):
            return sums
        # 0 · NaN is NaN: the product would spread one bad row over all groups. Add row by row.
    weighted = values if w is None else values * w.unsqueeze(2)
    offset = torch.arange(b, device=groups.device).unsqueeze(1) * num_groups
    sums = values.new_zeros(b * num_groups, num_freqs)
    sums.index_add_(0, (groups + offset).reshape(-1), weighted.reshape(b * n, num_freqs))
    return sums.view(b, num_groups, num_freqs)


def forward(
    x: Tensor,
    t: Tensor,
    w: Tensor | None,
    groups: Tensor | None,
    num_groups: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(Σ w cos, Σ w sin)``, each ``(B, G, F)``, and the phases ``(B, N, F)`` if ``keep``."""
    batch, rows, _ = x.shape
    num_freqs = t.shape[1]
    limit = _block_rows(x, t, chunk)
    if w is not None or groups is not None:
        # Products and scattered additions sum a block's rows one after the other in float32 (plain
        # sums do it pairwise): short blocks, added in float64, keep φ far below its noise.
        limit = min(limit, _SEQUENTIAL_ROWS if x.device.type == "cpu" else 16 * _SEQUENTIAL_ROWS)
    with _autocast_off(x.device):
        if batch * rows <= limit:
            theta = phases(x, t)
            cos_sum = _reduce(torch.cos(theta), w, groups, num_groups)
            sine = torch.sin(theta) if keep else theta.sin_()
            sin_sum = _reduce(sine, w, groups, num_groups)
            return cos_sum, sin_sum, theta if keep else x.new_empty(0)

        kept = x.new_empty((batch, rows, num_freqs) if keep else (0,))
        # F numbers per group: adding the blocks in float64 costs nothing and loses nothing.
        wide = x.dtype if x.device.type == "mps" else torch.float64
        cos_sum = torch.zeros(batch, num_groups, num_freqs, dtype=wide, device=x.device)
        sin_sum = torch.zeros_like(cos_sum)
        theta = trig = x.new_empty(0)
        for b, n in _blocks(batch, rows, limit):
            xb = x[b, n]
            shape = (*xb.shape[:2], num_freqs)
            if trig.shape != shape:  # the first block, and a shorter last one
                trig = x.new_empty(shape)
                theta = theta if keep else x.new_empty(shape)
            theta = kept[b, n] if keep else theta  # contiguous either way
            phases(xb, t if t.shape[0] == 1 else t[b], out=theta)
            wb = None if w is None else w[b, n]
            gb = None if groups is None else groups[b, n]
            cos_sum[b] += _reduce(torch.cos(theta, out=trig), wb, gb, num_groups)
            sin_sum[b] += _reduce(torch.sin(theta, out=trig), wb, gb, num_groups)
    return cos_sum.to(x.dtype), sin_sum.to(x.dtype), kept


def backward(
    grad_cos: Tensor,
    grad_sin: Tensor,
    x: Tensor,
    t: Tensor,
    w: Tensor | None,
    groups: Tensor | None,
    kept: Tensor,
    chunk: int,
    need_x: bool,
    need_t: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sums for ``x``, ``t``, ``w`` (empty where not needed).

    With ``a``, ``b`` the incoming gradients of Σ cos and Σ sin at a row's group,
    ``∂/∂θ = w (b cos θ - a sin θ) = w R cos(θ + δ)`` and ``∂/∂w = Σ_f R sin(θ + δ)``, where
    ``b = R cos δ`` and ``a = R sin δ``: one transcendental per phase instead of two.
    """
    batch, rows, dim = x.shape
    num_freqs, shared = t.shape[1], t.shape[0] == 1
    radius = torch.hypot(grad_cos, grad_sin)  # (B, G, F)
    delta = torch.atan2(grad_cos, grad_sin)
    limit = _block_rows(x, t, chunk)
    with _autocast_off(x.device):
        if batch * rows <= limit:
            turned = phases(x, t) if kept.numel() == 0 else kept.clone()
            grad_w = _slopes(turned, radius, delta, w, groups, need_w)
            flat, flat_x = turned.view(-1, num_freqs), x.reshape(-1, dim)
            grad_x = grad_t = x.new_empty(0)
            if need_x:
                grad_x = torch.mm(flat, t[0]).view_as(x) if shared else torch.bmm(turned, t)
            if need_t and shared:
                grad_t = torch.mm(flat.T, flat_x).unsqueeze(0)
            elif need_t:
                grad_t = torch.bmm(turned.transpose(1, 2), x)
            return grad_x, grad_t, grad_w

        grad_x = x.new_empty(x.shape if need_x else (0,))
        grad_t = t.new_empty(t.shape if need_t else (0,))
        grad_w = x.new_empty((batch, rows) if need_w else (0,))
        turned = x.new_empty(0)
        filled = False  # grad_t is as large as t: its first block writes, the others add
        for b, n in _blocks(batch, rows, limit):
            tb = t if shared else t[b]
            xb = x[b, n]
            shape = (*xb.shape[:2], num_freqs)
            if turned.shape != shape:
                turned = x.new_empty(shape)
            if kept.numel() > 0:
                turned.copy_(kept[b, n])
            else:
                phases(xb, tb, out=turned)
            wb = None if w is None else w[b, n]
            gb = None if groups is None else groups[b, n]
            slopes_w = _slopes(turned, radius[b], delta[b], wb, gb, need_w)
            if need_w:
                grad_w[b, n] = slopes_w
            if shared:
                flat = turned.view(-1, num_freqs)
                if need_x:
                    torch.mm(flat, t[0], out=grad_x[b, n].view(-1, dim))
                if need_t:
                    flat_x = xb.reshape(-1, dim)
                    torch.addmm(grad_t[0], flat.T, flat_x, beta=int(filled), out=grad_t[0])
                    filled = True
            else:
                if need_x:
                    grad_x[b, n] = torch.bmm(turned, tb)
                if need_t:
                    partial = torch.bmm(turned.transpose(1, 2), xb)
                    grad_t[b] = partial if n.start == 0 else grad_t[b] + partial
    return grad_x, grad_t, grad_w


def _slopes(
    theta: Tensor,
    radius: Tensor,
    delta: Tensor,
    w: Tensor | None,
    groups: Tensor | None,
    need_w: bool,
) -> Tensor:
    """Turn the phases ``(b, n, F)`` into ``w R cos(θ + δ)`` in place; returns ``Σ_f R sin(θ + δ)``.

    ``radius`` and ``delta`` are ``(b, G, F)``; the sum ``(b, n)`` is empty unless ``need_w``.
    """
    if groups is not None:
        b, num_groups, num_freqs = radius.shape
        offset = torch.arange(b, device=theta.device).unsqueeze(1) * num_groups
        index = (groups + offset).reshape(-1)
        radius = radius.reshape(-1, num_freqs).index_select(0, index).view(theta.shape)
        delta = delta.reshape(-1, num_freqs).index_select(0, index).view(theta.shape)
    theta.add_(delta)
    grad_w = (torch.sin(theta) * radius).sum(2) if need_w else theta.new_empty(0)
    theta.cos_().mul_(radius)
    if w is not None:
        theta.mul_(w.unsqueeze(2))
    return grad_w
