"""The custom operator ``ncfd::cf_sums``: its fake, autograd, second-order and vmap rules.

``torch.compile`` and ``torch.export`` see one opaque operator, ``torch.func`` a Function round it,
so the phases are formed the same way everywhere: once, in float32 or better, autocast or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncfd.ops import _phases


def sums(
    x: Tensor,
    t: Tensor,
    weights: Tensor | None,
    groups: Tensor | None,
    num_groups: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The sums in a graph or under ``torch.func``: ``_sums`` says which way is whose."""
    if not torch.compiler.is_compiling():
        cos_sum, sin_sum, _ = _Sums.apply(x, t, weights, groups, num_groups, chunk, keep)
    elif _TRACES_DEPTH and _graph_transforms():
        cos_sum, sin_sum = _plain_sums(x, t, weights, groups, num_groups)
    else:
        cos_sum, sin_sum, _ = cf_sums(x, t, weights, groups, num_groups, chunk, keep)
    return cos_sum, sin_sum


def transforming() -> bool:
    """Inside a ``torch.func`` transform."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# Older dynamos break the graph at the depth (2.5 does; between the two it was not tried): there
# compiled ``torch.func`` transforms stay refused, and all else compiles.
_TRACES_DEPTH = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


def in_graph() -> bool:
    """While a graph is being formed, its backward included.

    Of the backward, which no dynamo sees, PyTorch 2.11 says that it is not compiling.
    """
    return torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None


def _graph_transforms() -> bool:
    """Inside a ``torch.func`` transform in a graph; dynamo misreads the stack itself."""
    depth = getattr(torch._C._functorch, "get_dynamic_layer_stack_depth", None)
    return depth is not None and depth() > 0


def _plain_sums(
    x: Tensor, t: Tensor, weights: Tensor | None, groups: Tensor | None, num_groups: int
) -> tuple[Tensor, Tensor]:
    """``sums`` in operations that compose with everything; holds all phases at once."""
    with torch.autocast(x.device.type, enabled=False):
        theta = torch.matmul(x, t.transpose(1, 2))  # (B, N, F)
        cos, sin = torch.cos(theta), torch.sin(theta)
    if weights is not None:
        cos, sin = cos * weights.unsqueeze(2), sin * weights.unsqueeze(2)
    if groups is None:
        return cos.sum(1, keepdim=True), sin.sum(1, keepdim=True)
    zeros = cos.new_zeros(cos.shape[0], num_groups, cos.shape[2])
    index = groups.unsqueeze(2).expand_as(cos)
    return zeros.scatter_add(1, index, cos), zeros.scatter_add(1, index, sin)


def is_batched(grad: Tensor) -> bool:
    """A gradient of ``is_grads_batched=True``, which the in-place kernels cannot take."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_functorch_wrapped_tensor(grad)


@torch.library.custom_op("ncfd::cf_sums", mutates_args=())
def cf_sums(
    x: Tensor,
    t: Tensor,
    weights: Tensor | None,
    groups: Tensor | None,
    num_groups: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums ``(B, G, F)`` twice, and what the backward wants of the phases if ``keep``: (B, N, F).

    Without ``keep`` the third tensor is empty.
    """
    if groups is not None and groups.device.type == "cpu" and groups.numel() > 0:
        # Compiled and vmapped callers reach only this check; eager ones were told the argument.
        low, high = torch.aminmax(groups)
        if low < 0 or high >= num_groups:
            raise ValueError(
                f"group labels must lie in [0, num_groups = {num_groups}), "
                f"got values from {int(low)} to {int(high)}"
            )
    cos_sum, sin_sum, kept = _phases.forward(
        x, t, weights, groups, num_groups, chunk, keep, split=False
    )
    return cos_sum, sin_sum, kept[0] if keep else x.new_empty(0)


@cf_sums.register_fake
def _cf_sums_fake(
    x: Tensor,
    t: Tensor,
    weights: Tensor | None,  # noqa: ARG001 - the rules share the operator's signature
    groups: Tensor | None,  # noqa: ARG001 - as PyTorch calls it
    num_groups: int,
    chunk: int,  # noqa: ARG001 - as PyTorch calls it
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, _ = x.shape
    num_freqs = t.shape[1]
    sums = x.new_empty(batch, num_groups, num_freqs)
    return sums, torch.empty_like(sums), x.new_empty((batch, rows, num_freqs) if keep else (0,))


@torch.library.custom_op("ncfd::cf_sums_backward", mutates_args=())
def cf_sums_backward(
    grad_cos: Tensor,
    grad_sin: Tensor,
    x: Tensor,
    t: Tensor,
    weights: Tensor | None,
    groups: Tensor | None,
    kept: Tensor,
    chunk: int,
    need_x: bool,
    need_t: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for ``x``, ``t`` and ``weights``; an empty tensor where not needed."""
    pieces = [kept] if kept.numel() > 0 else []
    grad_x, grad_t, grad_w = _phases.backward(
        (grad_cos, grad_sin), (x, t, weights, groups), pieces, chunk, (need_x, need_t, need_w)
    )
    # What is not needed may be one empty tensor twice, which an operator must not return.
    return (
        grad_x if need_x else x.new_empty(0),
        grad_t.contiguous() if need_t else t.new_empty(0),
        grad_w if need_w else x.new_empty(0),
    )


@cf_sums_backward.register_fake
def _cf_sums_backward_fake(
    grad_cos: Tensor,  # noqa: ARG001 - as PyTorch calls it
    grad_sin: Tensor,  # noqa: ARG001 - as PyTorch calls it
    x: Tensor,
    t: Tensor,
    weights: Tensor | None,  # noqa: ARG001 - as PyTorch calls it
    groups: Tensor | None,  # noqa: ARG001 - as PyTorch calls it
    kept: Tensor,  # noqa: ARG001 - as PyTorch calls it
    chunk: int,  # noqa: ARG001 - as PyTorch calls it
    need_x: bool,
    need_t: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        t.new_empty(t.shape if need_t else (0,)),
        x.new_empty(x.shape[:2] if need_w else (0,)),
    )


def _setup_sums(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, t, weights, groups, _, chunk, _ = inputs
    cos_sum, _, kept = output
    ctx.save_for_backward(x, t, weights, groups, kept)
    _setup_rest(ctx, chunk, cos_sum)


def _setup_rest(ctx: Any, chunk: int, cos_sum: Tensor) -> None:
    ctx.chunk = chunk
    ctx.sums_shape = cos_sum.shape
    # The kept phases never receive a gradient; without this a zero (B, N, F) would be made for it.
    ctx.set_materialize_grads(False)


def _backward_sums(
    ctx: Any, grad_cos: Tensor | None, grad_sin: Tensor | None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    x, t, weights, groups, *pieces = ctx.saved_tensors
    nothing = (None,) * 7
    if grad_cos is None and grad_sin is None:
        return nothing
    batched = any(g is not None and is_batched(g) for g in (grad_cos, grad_sin))
    grad_cos = x.new_zeros(ctx.sums_shape) if grad_cos is None else grad_cos
    grad_sin = x.new_zeros(ctx.sums_shape) if grad_sin is None else grad_sin
    need_x, need_t, need_w = ctx.needs_input_grad[:3]
    needs = need_x, need_t, need_w
    if in_graph() or torch.is_grad_enabled() or batched:
        way = cf_sums_backward if in_graph() else _SumsBackward.apply
        # In one piece, or formed again.
        kept = pieces[0] if len(pieces) == 1 else x.new_empty(0)
        grad_x, grad_t, grad_w = way(
            grad_cos, grad_sin, x, t, weights, groups, kept, ctx.chunk, *needs
        )
    else:  # an ordinary backward: nothing above this to differentiate or to transform
        kept = [piece for piece in pieces if piece.numel() > 0]
        side = x, t, weights, groups
        grad_x, grad_t, grad_w = _phases.backward(
            (grad_cos, grad_sin), side, kept, ctx.chunk, needs
        )
    return (
        grad_x if need_x else None,
        grad_t.contiguous() if need_t else None,
        grad_w if need_w else None,
        *nothing[3:],
    )


def differentiable_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``cf_sums_backward`` with a gradient of its own; forms the phases again."""
    *tensors, chunk, need_x, need_t, need_w = args
    x = tensors[2]
    result: tuple[Tensor, Tensor, Tensor] = _SumsBackward.apply(
        *tensors, x.new_empty(0), chunk, need_x, need_t, need_w
    )
    return result


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - as PyTorch calls it
    ctx.save_for_backward(*inputs[:6])
    ctx.needs = inputs[8:]
    ctx.set_materialize_grads(False)


def _backward_backward(
    ctx: Any, u_x: Tensor | None, u_t: Tensor | None, u_w: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Second order, in plain differentiable operations, so that any higher order follows.

    With ``e = w (b cos θ - a sin θ)`` the first backward is ``dx = e t``, ``dt = eᵀ x``,
    ``dw = Σ_f (a cos θ + b sin θ)``; this is the gradient of ``⟨u_x, dx⟩ + ⟨u_t, dt⟩ + ⟨u_w, dw⟩``.
    Used by gradient penalties on small batches: phases are whole, not in blocks.
    """
    grad_cos, grad_sin, x, t, weights, groups = ctx.saved_tensors
    # An output that was not needed is empty, and so is its gradient.
    u_x, u_t, u_w = (
        u if needed else None for u, needed in zip((u_x, u_t, u_w), ctx.needs, strict=True)
    )
    with torch.autocast(x.device.type, enabled=False):
        batch, _, num_freqs = grad_cos.shape
        rows = x.shape[1]
        theta = torch.matmul(x, t.transpose(1, 2))  # (B, N, F)
        cos, sin = torch.cos(theta), torch.sin(theta)
        if groups is None:
            a, b = grad_cos, grad_sin  # (B, 1, F)
        else:
            index = groups.unsqueeze(2).expand(batch, rows, num_freqs)
            a, b = grad_cos.gather(1, index), grad_sin.gather(1, index)
        w = 1.0 if weights is None else weights.unsqueeze(2)
        slope = b * cos - a * sin
        # p = ∂⟨u, first backward⟩ / ∂e
        p = torch.zeros_like(theta)
        if u_x is not None:
            p = p + torch.matmul(u_x, t.transpose(1, 2))
        if u_t is not None:
            p = p + torch.matmul(x, u_t.transpose(1, 2))
        per_cos, per_sin = -sin * w * p, cos * w * p
        q = -(a * cos + b * sin) * w * p
        if u_w is not None:
            uw = u_w.unsqueeze(2)
            per_cos, per_sin, q = per_cos + uw * cos, per_sin + uw * sin, q + uw * slope
        if groups is None:
            out_cos, out_sin = per_cos.sum(1, keepdim=True), per_sin.sum(1, keepdim=True)
        else:
            zeros = torch.zeros_like(grad_cos)
            out_cos = zeros.scatter_add(1, index, per_cos)
            out_sin = zeros.scatter_add(1, index, per_sin)
        e = w * slope
        out_x = torch.matmul(q, t)
        out_t = torch.matmul(q.transpose(1, 2), x)
        if u_t is not None:
            out_x = out_x + torch.matmul(e, u_t)
        if u_x is not None:
            out_t = out_t + torch.matmul(e.transpose(1, 2), u_x)
        if t.shape[0] == 1:
            out_t = out_t.sum(0, keepdim=True)
        out_w = None if weights is None else (slope * p).sum(2)
    return out_cos, out_sin, out_x, out_t, out_w, None, None, None, None, None, None


def _fold(value: Any, dim: int | None, size: int, batch: int) -> Any:
    """Move a vmapped dimension into the folded batch: ``-> (size * batch, ...)``."""
    if value is None:
        return None
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    value = value.expand(size, batch, *value.shape[2:])
    return value.reshape(size * batch, *value.shape[2:])


def _batch_of(x: Tensor, dim: int | None) -> int:
    return x.shape[0] if dim is None else x.movedim(dim, 0).shape[1]


def _fold_t(t: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    # Shared frequencies stay shared: one product instead of one per batch entry.
    return t if dim is None and t.shape[0] == 1 else _fold(t, dim, size, batch)


def _cf_sums_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    x, t, weights, groups, num_groups, chunk, keep = args
    size, batch = info.batch_size, _batch_of(x, in_dims[0])
    outputs = _Sums.apply(
        _fold(x, in_dims[0], size, batch),
        _fold_t(t, in_dims[1], size, batch),
        _fold(weights, in_dims[2], size, batch),
        _fold(groups, in_dims[3], size, batch),
        num_groups,
        chunk,
        keep,
    )
    cos_sum, sin_sum, kept = outputs
    unfold = [s.view(size, batch, *s.shape[1:]) for s in (cos_sum, sin_sum)]
    if keep:
        return (*unfold, kept.view(size, batch, *kept.shape[1:])), (0, 0, 0)
    return (*unfold, kept), (0, 0, None)


def _cf_sums_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    grad_cos, grad_sin, x, t, weights, groups, kept, chunk, need_x, need_t, need_w = args
    size, batch = info.batch_size, _batch_of(x, in_dims[2])
    # Unlike the forward, a gradient for shared frequencies differs per vmapped entry.
    folded_t = _fold(t, in_dims[3], size, batch) if need_t else _fold_t(t, in_dims[3], size, batch)
    empty = kept.numel() == 0
    outputs = _SumsBackward.apply(
        _fold(grad_cos, in_dims[0], size, batch),
        _fold(grad_sin, in_dims[1], size, batch),
        _fold(x, in_dims[2], size, batch),
        folded_t,
        _fold(weights, in_dims[4], size, batch),
        _fold(groups, in_dims[5], size, batch),
        kept.reshape(-1)[:0] if empty else _fold(kept, in_dims[6], size, batch),
        chunk,
        need_x,
        need_t,
        need_w,
    )
    results: list[Tensor] = []
    dims: list[int | None] = []
    t_batch = t.shape[0] if in_dims[3] is None else t.movedim(in_dims[3], 0).shape[1]
    for position, (value, needed) in enumerate(zip(outputs, (need_x, need_t, need_w), strict=True)):
        if not needed:
            results.append(value)
            dims.append(None)
            continue
        value = value.view(size, batch, *value.shape[1:])
        if position == 1 and t_batch == 1 and batch > 1:
            value = value.sum(1, keepdim=True)
        results.append(value)
        dims.append(0)
    return tuple(results), tuple(dims)


class _Sums(torch.autograd.Function):
    """``cf_sums`` with its rules in the form that ``torch.func`` composes."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = cf_sums(*args)
        return result

    setup_context = staticmethod(_setup_sums)
    backward = staticmethod(_backward_sums)
    vmap = staticmethod(_cf_sums_vmap)


class _SumsBackward(torch.autograd.Function):
    """``cf_sums_backward`` likewise, for second derivatives."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = cf_sums_backward(*args)
        return result

    setup_context = staticmethod(_setup_backward)
    backward = staticmethod(_backward_backward)
    vmap = staticmethod(_cf_sums_backward_vmap)


# The operators carry the same autograd rules, for compiled and exported graphs.
cf_sums.register_autograd(_backward_sums, setup_context=_setup_sums)
cf_sums_backward.register_autograd(_backward_backward, setup_context=_setup_backward)
