"""Sums at many frequencies along one line: ``Σ_n w_n cos(j h s_n)`` and sine, for j = 1 ... J.

The frequencies of a ray are multiples of one step h, so one cosine and one sine of each projection
s give all of them. With ``z = exp(i h s)`` and ``j = m i + r``, ``|r| <= m/2``,

    cos jθ = cos miθ cos rθ - sin miθ sin rθ        sin jθ = sin miθ cos rθ + cos miθ sin rθ

a sum over samples is one small matrix product a line, ``(m + 1, n)(n, 2 I + 1)``, of the powers of
z up to m/2 with those of ``z^m``: with m near the root of J, about ``4 √J`` numbers a projection
instead of ``2 J``. Powers are formed by doubling and products, so an error in z counts at most j
times, at angles near 0 and π as well; there Chebyshev's three-term recurrence loses up to j².
A polynomial ``Σ_j a_j cos jθ + b_j sin jθ``, which every gradient of the sums is, takes the same
way back. Only projections are kept from forward to backward; all else is one block in the cache.

Letters: B batch (folded), K lines (slices), N samples, J nodes, L = B K. Samples come last here,
``s (B, K, N)``: a line is then contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncfd._devices import constant, widest_float
from ncfd.ops import _operator
from ncfd.ops._budget import BUDGET
from ncfd.ops._phases import autocast_off

# Rows that a product adds in float32, as in the other sums.
_SEQUENTIAL_ROWS = 1024
# Up to this many nodes a product with a table is faster than picking them.
_DENSE_NODES = 64
# Up to this many samples a line is one block.
_LONGEST = 2**16
# PyTorch cuts an operation among threads where each has so many numbers (its GRAIN_SIZE).
_SHARED = 2**15


def ray_sums(
    s: Tensor, step: float, num_nodes: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(Σ_n w_n cos(j h s_n), Σ_n w_n sin(j h s_n))`` for j = 1 ... J, each ``(*, J, K)``.

    Node 0, where the sums are ``Σ w`` and 0, is left out.

    Args:
        s: projections ``(*, N, K)`` of N samples on K directions, float32 or float64. Fastest where
            the samples are contiguous: the transpose of a product ``(K, D)(D, N)``.
        step: h, the distance of the nodes, in radians per unit of ``s``.
        num_nodes: J.
        weights: ``(*, N)``, or ``(*, N, K)`` for weights that differ between the directions, or
            None for ones; dtype of ``s``.

    Differentiable any number of times in ``s`` and ``weights``. Beyond projections and gradients
    memory is O(J K) and one block.
    """
    lines = s.transpose(-2, -1)  # (*, K, N)
    batch = lines.shape[:-1]
    lines = lines.reshape(-1, *lines.shape[-2:])
    if weights is not None:
        turned = weights.unsqueeze(-2) if weights.ndim < s.ndim else weights.transpose(-2, -1)
        weights = turned.reshape(-1, *turned.shape[-2:])
    sums = line_sums(lines, step, num_nodes, weights).view(*batch, 2, num_nodes)
    cos_sum, sin_sum = sums.movedim(-3, -1).unbind(-3)
    return cos_sum, sin_sum


def line_sums(s: Tensor, step: float, num_nodes: int, weights: Tensor | None = None) -> Tensor:
    """``ray_sums`` as the operator has them: ``s (B, K, N)`` -> ``(B, K, 2 J)``, cosines first.

    ``weights`` are ``(B, 1, N)`` or ``(B, K, N)``.
    """
    if torch.compiler.is_compiling() and _operator._TRACES_DEPTH and _operator._graph_transforms():
        return _plain_sums(s, weights, step, num_nodes)
    # The doors of `_operator.sums`: graphs take the operator, torch.func and eager the Function.
    apply = ray_sums_op if _operator.in_graph() else _Sums.apply
    sums: Tensor = apply(s, weights, step, num_nodes)
    return sums


# ------------------------------------------------------------------------------------------------
# Which powers
# ------------------------------------------------------------------------------------------------


#: A cosine and a sine of every angle of a block.
Pair = tuple[Tensor, Tensor]


class _Plan(NamedTuple):
    """How J nodes come from two short lists of powers."""

    nodes: int  # J
    giant: int  # m
    giants: int  # I

    @property
    def half(self) -> int:
        return self.giant // 2

    @property
    def num_small(self) -> int:
        """1, cos rθ, sin rθ for r = 1 ... m/2."""
        return 2 * self.half + 1

    @property
    def num_large(self) -> int:
        """1, cos miθ, sin miθ for i = 1 ... I."""
        return 2 * self.giants + 1


def _plan(nodes: int) -> _Plan:
    giant = max(2, 2 ** math.ceil(math.log2(nodes) / 2))
    giants = max(0, math.ceil((nodes - giant // 2) / giant))
    return _Plan(nodes, giant, giants)


@constant
def _picks(plan: _Plan, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Where the ``2 J`` sums lie in the flat ``(small, large)`` matrix.

    The first entry of each sum and its factor, 0 where there is none, then the second.
    """
    j = torch.arange(1, plan.nodes + 1, device=device)
    i = torch.div(j + plan.half - 1, plan.giant, rounding_mode="floor")
    r = j - plan.giant * i  # in (-m/2, m/2]
    small_cos, small_sin = r.abs(), plan.half + r.abs()
    large_cos, large_sin = i, plan.giants + i
    # cos = cos·cos - sin·sin, sin = cos·sin + sin·cos, the first of each pair being the small one.
    first = torch.cat(
        [small_cos * plan.num_large + large_cos, small_cos * plan.num_large + large_sin]
    )
    second = torch.cat(
        [small_sin * plan.num_large + large_sin, small_sin * plan.num_large + large_cos]
    )
    has = torch.cat([torch.ones_like(i), i.sign()])
    sign = torch.cat([-r.sign() * i.sign(), r.sign()])
    return first, has.to(dtype), second, sign.to(dtype)


def _nodes_of(matrix: Tensor, plan: _Plan) -> Tensor:
    """Sums at the nodes, ``(L, 2 J)``, from those of the products of powers."""
    flat = matrix.view(len(matrix), -1)  # (L, (m + 1) (2 I + 1))
    first, has, second, sign = _picks(plan, matrix.device, matrix.dtype)
    return flat.index_select(1, first).mul_(has).addcmul_(flat.index_select(1, second), sign)


@constant
def _coefficient_picks(plan: _Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which two of ``[0, a, b, -a, -b]`` make each entry: at ``j = m i + r`` and ``m i - r``."""
    J = plan.nodes
    r = torch.arange(plan.half + 1, device=device).unsqueeze(1)
    i = torch.arange(plan.giants + 1, device=device)
    plus, minus = plan.giant * i + r, plan.giant * i - r  # (m/2 + 1, I + 1)
    plus = torch.where(plus <= J, plus, 0)
    # Each node once: m i - m/2 is m (i - 1) + m/2.
    minus = torch.where((minus > 0) & (minus <= J) & (r > 0) & (r < plan.half), minus, 0)
    a, b, neg_a, neg_b = range(4)
    both = []
    for node, signs in ((plus, (a, b, b, neg_a)), (minus, (a, b, neg_b, a))):
        cc, cs, sc, ss = (torch.where(node > 0, node + block * J, 0) for block in signs)
        top = torch.cat([cc, cs[:, 1:]], 1)
        bottom = torch.cat([sc, ss[:, 1:]], 1)[1:]
        both.append(torch.cat([top, bottom]).flatten())
    return both[0], both[1]


def _matrix_of(coefficients: Tensor, plan: _Plan) -> Tensor:
    """Coefficients ``(L, 2 J)`` of cos jθ and sin jθ as those of the products of powers."""
    zero = coefficients.new_zeros(len(coefficients), 1)
    both = torch.cat([zero, coefficients, -coefficients], 1)
    plus, minus = _coefficient_picks(plan, coefficients.device)
    flat = both.index_select(1, plus).add_(both.index_select(1, minus))
    return flat.view(-1, plan.num_small, plan.num_large)


# ------------------------------------------------------------------------------------------------
# Kernels
# ------------------------------------------------------------------------------------------------


class _Powers:
    """Powers of ``exp(iθ)`` of one block of lines after another, in the same memory."""

    def __init__(self, like: Tensor, plan: _Plan, lines: int, rows: int, *, waves: bool) -> None:
        self.plan = plan
        # Products have their lines first: they would go through a copy otherwise.
        self.held = (
            2 * plan.num_small + plan.num_large if waves else plan.num_small + plan.num_large
        )
        self.memory = like.new_empty(self.held * lines * rows)
        self.zero, self.one = like.new_zeros(()), like.new_ones(())
        self.shape = (0, 0)
        self.small = self.large = self.products = self.memory
        self.powers: list[Pair] = []
        self.giants: list[Pair] = []

    def enter(self, s: Tensor, step: float) -> None:
        """Fill ``small (m + 1, l, n)`` and ``large (2 I + 1, l, n)`` for ``s (l, n)``."""
        if s.shape != self.shape:
            self._arrange(*s.shape)
        cos, sin = self.powers[0]
        torch.mul(s, step, out=sin)
        torch.cos(sin, out=cos)
        sin.sin_()
        self._raise(self.powers)
        if self.giants:
            self._double(self.powers[-1], self.giants[0])
            self._raise(self.giants)

    def sums(self, weights: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """``(l, m + 1, 2 I + 1)``: over samples, of the products of small and large powers."""
        small = self.small if weights is None else self.small * weights
        left, right = small.transpose(0, 1), self.large.permute(1, 2, 0)
        if self.shape[1] <= _SEQUENTIAL_ROWS:
            return torch.bmm(left, right, out=out)
        wide = widest_float(small.device)
        total = small.new_zeros(small.shape[1], len(small), len(self.large), dtype=wide)
        for start in range(0, self.shape[1], _SEQUENTIAL_ROWS):
            n = slice(start, start + _SEQUENTIAL_ROWS)
            total += torch.bmm(left[:, :, n], right[:, n])
        return total.to(small.dtype)

    def waves(self, matrix: Tensor, out: Tensor) -> None:
        """The polynomial with coefficients ``matrix (l, m + 1, 2 I + 1)`` into ``out (l, n)``."""
        torch.bmm(matrix, self.large.transpose(0, 1), out=self.products)
        value, *others = self.products.unbind(1)
        *most, last = zip(self.small.unbind()[1:], others, strict=True)
        for power, product in most:
            value.addcmul_(power, product)
        torch.addcmul(value, *last, out=out)

    def _arrange(self, lines: int, rows: int) -> None:
        # Views take longer than the arithmetic of a small block: made once a shape, not a block.
        self.shape = (lines, rows)
        plan = self.plan
        parts = self.memory[: self.held * lines * rows].view(-1, lines, rows)
        sizes = [plan.num_small, plan.num_large, self.held - plan.num_small - plan.num_large]
        self.small, self.large, products = torch.split(parts, sizes)
        self.products = products.view(lines, -1, rows)
        self.small[0] = 1
        self.large[0] = 1
        self.powers = _pairs(self.small, plan.half)
        self.giants = _pairs(self.large, plan.giants)

    def _raise(self, powers: list[Pair]) -> None:
        """The first power is there: fill in the others."""
        for j in range(2, len(powers) + 1):
            if j % 2 == 0:
                self._double(powers[j // 2 - 1], powers[j - 1])
            else:
                (c, s), (d, t), (cos, sin) = powers[j // 2 - 1], powers[j // 2], powers[j - 1]
                torch.mul(c, d, out=cos).addcmul_(s, t, value=-1)
                torch.mul(s, d, out=sin).addcmul_(c, t)

    def _double(self, of: tuple[Tensor, Tensor], into: tuple[Tensor, Tensor]) -> None:
        cos, sin = of
        torch.addcmul(self.one, sin, sin, value=-2, out=into[0])
        torch.addcmul(self.zero, sin, cos, value=2, out=into[1])


def _pairs(powers: Tensor, count: int) -> list[Pair]:
    """Cosine and sine of each power, from ``(1, cosines, sines)``."""
    views = powers.unbind()
    return list(zip(views[1 : count + 1], views[count + 1 :], strict=True))


def _block_shape(s: Tensor, plan: _Plan, most_rows: int = _SEQUENTIAL_ROWS) -> tuple[int, int]:
    """Lines and samples of one block."""
    # Powers, their weighted copy or the products; and what is read and written.
    held = (2 * plan.num_small + plan.num_large + 2) * s.element_size()
    if s.device.type == "cpu":
        # Each thread works on its own part, in its own cache.
        threads = torch.get_num_threads()
        angles = BUDGET["block_small_dim"] // held
        angles = angles if threads == 1 else threads * max(angles, _SHARED)
    else:
        angles = BUDGET["block_accelerator"] // held
    rows = min(s.shape[1], most_rows)
    lines = max(1, angles // max(rows, 1))
    # Blocks of one size, as far as that goes.
    blocks = max(1, -(-s.shape[0] // lines))
    return -(-s.shape[0] // blocks), rows


def _blocks(s: Tensor, lines: int, rows: int) -> Iterator[tuple[slice, slice]]:
    for k in range(0, s.shape[0], lines):
        for n in range(0, s.shape[1], max(rows, 1)):
            yield slice(k, min(k + lines, s.shape[0])), slice(n, min(n + rows, s.shape[1]))


def _weights_of(weights: Tensor, k: slice, n: slice, lines: int) -> Tensor:
    """The part of ``weights (B, 1 or K, N)`` for a block of the ``B K`` lines: ``(l, n)``."""
    if weights.shape[1] == lines:
        return weights.reshape(-1, weights.shape[2])[k, n]
    batch = torch.arange(k.start, k.stop, device=weights.device) // lines
    return weights[:, 0, n].index_select(0, batch)


def _sums_kernel(s: Tensor, weights: Tensor | None, step: float, num_nodes: int) -> Tensor:
    """Sums ``(B, K, 2 J)`` of ``s (B, K, N)`` with ``weights (B, 1 or K, N)``."""
    B, K, N = s.shape
    flat, plan = s.reshape(B * K, N), _plan(num_nodes)
    lines, rows = _block_shape(flat, plan)
    # Sums over many blocks in float64: they are only a few numbers a line.
    dtype = s.dtype if rows == N else widest_float(s.device)
    total = s.new_zeros(B * K, plan.num_small, plan.num_large, dtype=dtype)
    powers = _Powers(s, plan, lines, rows, waves=False)
    with autocast_off(s.device):
        for k, n in _blocks(flat, lines, rows):
            powers.enter(flat[k, n], step)
            w = None if weights is None else _weights_of(weights, k, n, K)
            if rows == N:
                powers.sums(w, out=total[k])
            else:
                total[k] += powers.sums(w)
    return _nodes_of(total.to(s.dtype), plan).view(B, K, 2 * num_nodes)


def _waves_kernel(s: Tensor, coefficients: Tensor, step: float) -> Tensor:
    """``Σ_j a_j cos(j h s) + b_j sin(j h s)`` for ``s (B, K, N)``; ``coefficients (B, K, 2 J)``."""
    B, K, N = s.shape
    flat, plan = s.reshape(B * K, N), _plan(coefficients.shape[2] // 2)
    matrix = _matrix_of(coefficients.reshape(B * K, -1), plan)
    out = s.new_empty(B * K, N)
    lines, rows = _block_shape(flat, plan)
    powers = _Powers(s, plan, lines, rows, waves=True)
    with autocast_off(s.device):
        for k, n in _blocks(flat, lines, rows):
            powers.enter(flat[k, n], step)
            powers.waves(matrix[k], out[k, n])
    return out.view(B, K, N)


# ------------------------------------------------------------------------------------------------
# Value and slopes at once, where the sums of a line are all that its slopes depend on
# ------------------------------------------------------------------------------------------------


def gaps_fit(rows: int, num_nodes: int) -> bool:
    """Whether ``line_gaps`` may be used here, for lines of so many samples."""
    composed = torch.compiler.is_compiling() or _operator.transforming()
    return not composed and num_nodes <= _DENSE_NODES and rows <= _LONGEST


def line_gaps(
    s: Tensor,
    step: float,
    target: tuple[float, ...],
    weights: tuple[float, ...],
    *,
    slopes: bool,
) -> Tensor:
    """``Σ_j w_j (f_j - target_j)²`` of each line of ``s (L, N)``, ``f`` its means: ``(L,)``.

    Means of J cosines first, then of J sines; ``target`` and ``weights`` likewise, 2 J each. With
    ``slopes`` the derivative of N times the value takes the place of ``s``, formed while the powers
    of a block are there. Has no derivative of its own.
    """
    L, N = s.shape
    plan = _plan(len(target) // 2)
    nodes, towards, back, weight = _gap_tables(step, target, weights, s.device, s.dtype)
    lines, _ = _block_shape(s, plan, _LONGEST)
    values = s.new_empty(L)
    powers = _Powers(s, plan, lines, N, waves=slopes)
    with autocast_off(s.device):
        for start in range(0, L, lines):
            part = s[start : start + lines]
            powers.enter(part, step)
            gap = torch.addmm(towards, powers.sums().flatten(1), nodes, alpha=1 / N)
            torch.mv(gap * gap, weight, out=values[start : start + lines])
            if slopes:
                matrix = torch.mm(gap, back).view(-1, plan.num_small, plan.num_large)
                powers.waves(matrix, part)
    return values


@constant
def _gap_tables(
    step: float,
    target: tuple[float, ...],
    weights: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """From products of powers to nodes, ``-target``, from gaps to slopes' products, ``weights``."""
    J = len(target) // 2
    plan = _plan(J)
    first, has, second, sign = _picks(plan, device, dtype)
    nodes = torch.zeros(plan.num_small * plan.num_large, 2 * J, device=device, dtype=dtype)
    column = torch.arange(2 * J, device=device)
    nodes[first, column] = has
    nodes[second, column] += sign
    weight = torch.tensor(weights, device=device, dtype=dtype)
    rate = 2 * step * torch.arange(1, J + 1, device=device, dtype=dtype)
    # The derivative of a cosine is a negative sine, and of a sine a cosine.
    back = torch.cat([-rate * weight[:J] * nodes[:, J:], rate * weight[J:] * nodes[:, :J]], 1).T
    return nodes, -torch.tensor(target, device=device, dtype=dtype), back.contiguous(), weight


# ------------------------------------------------------------------------------------------------
# The operators: each is the adjoint of the other, so derivatives of any order are made of the two
# ------------------------------------------------------------------------------------------------


@torch.library.custom_op("ncfd::ray_sums", mutates_args=())
def ray_sums_op(s: Tensor, weights: Tensor | None, step: float, num_nodes: int) -> Tensor:
    """Sums ``(B, K, 2 J)``."""
    return _sums_kernel(s, weights, step, num_nodes)


@ray_sums_op.register_fake
def _ray_sums_fake(
    s: Tensor,
    weights: Tensor | None,  # noqa: ARG001 - the rules share the operator's signature
    step: float,  # noqa: ARG001 - as PyTorch calls it
    num_nodes: int,
) -> Tensor:
    return s.new_empty(*s.shape[:2], 2 * num_nodes)


@torch.library.custom_op("ncfd::ray_waves", mutates_args=())
def ray_waves_op(s: Tensor, coefficients: Tensor, step: float) -> Tensor:
    """``Σ_j a_j cos(j h s) + b_j sin(j h s)``, the shape of ``s``."""
    return _waves_kernel(s, coefficients, step)


@ray_waves_op.register_fake
def _ray_waves_fake(
    s: Tensor,
    coefficients: Tensor,  # noqa: ARG001 - as PyTorch calls it
    step: float,  # noqa: ARG001 - as PyTorch calls it
) -> Tensor:
    return s.new_empty(s.shape)


def _plain_sums(s: Tensor, weights: Tensor | None, step: float, num_nodes: int) -> Tensor:
    """The sums in operations that compose with everything; all ``(B, K, J, N)`` phases at once."""
    nodes = torch.arange(1, num_nodes + 1, device=s.device, dtype=s.dtype).unsqueeze(1)
    theta = (step * s).unsqueeze(2) * nodes
    waves = torch.cat([torch.cos(theta), torch.sin(theta)], 2)
    return (waves if weights is None else waves * weights.unsqueeze(2)).sum(3)


def _waves(s: Tensor, coefficients: Tensor, step: float) -> Tensor:
    apply = ray_waves_op if _operator.in_graph() else _Waves.apply
    value: Tensor = apply(s, coefficients, step)
    return value


def _slopes(s: Tensor, coefficients: Tensor, step: float) -> Tensor:
    """The derivative of ``_waves`` for ``s``."""
    J = coefficients.shape[2] // 2
    nodes = torch.arange(1, J + 1, device=s.device, dtype=s.dtype) * step
    a, b = coefficients[..., :J], coefficients[..., J:]
    return _waves(s, torch.cat([b * nodes, -a * nodes], 2), step)


def _setup_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - as PyTorch calls it
    s, weights, ctx.step, _ = inputs
    ctx.save_for_backward(s, weights)


def _backward_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    s, weights = ctx.saved_tensors
    grad_s = grad_w = None
    if ctx.needs_input_grad[0]:
        grad_s = _slopes(s, grad, ctx.step)
        grad_s = grad_s if weights is None else grad_s * weights
    if ctx.needs_input_grad[1]:
        grad_w = _waves(s, grad, ctx.step).sum_to_size(weights.shape)
    return grad_s, grad_w, None, None


def _setup_waves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - as PyTorch calls it
    s, coefficients, ctx.step = inputs
    ctx.save_for_backward(s, coefficients)


def _backward_waves(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    s, coefficients = ctx.saved_tensors
    grad_s = grad_c = None
    if ctx.needs_input_grad[0]:
        grad_s = _slopes(s, coefficients, ctx.step) * grad
    if ctx.needs_input_grad[1]:
        grad_c = line_sums(s, ctx.step, coefficients.shape[2] // 2, grad)
    return grad_s, grad_c, None


def _fold(value: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Move a vmapped dimension into the batch: ``(B, ...) -> (size * B, ...)``."""
    if value is None:
        return None
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.reshape(-1, *value.shape[2:])


def _vmap(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], args: Any
) -> tuple[Tensor, int]:
    """Two tensors with a batch dimension, then options."""
    size = info.batch_size
    tensors = (_fold(v, dim, size) for v, dim in zip(args[:2], in_dims[:2], strict=True))
    result = function.apply(*tensors, *args[2:])
    return result.view(size, -1, *result.shape[1:]), 0


def _any_batched(*tensors: Tensor | None) -> bool:
    """Of ``is_grads_batched=True``, whose tensors only operators take."""
    return any(v is not None and _operator.is_batched(v) for v in tensors)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(s: Tensor, weights: Tensor | None, step: float, num_nodes: int) -> Tensor:
        kernel = ray_sums_op if _any_batched(s, weights) else _sums_kernel
        return kernel(s, weights, step, num_nodes)

    setup_context = staticmethod(_setup_sums)
    backward = staticmethod(_backward_sums)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _vmap(_Sums, info, in_dims, args)


class _Waves(torch.autograd.Function):
    @staticmethod
    def forward(s: Tensor, coefficients: Tensor, step: float) -> Tensor:
        kernel = ray_waves_op if _any_batched(s, coefficients) else _waves_kernel
        return kernel(s, coefficients, step)

    setup_context = staticmethod(_setup_waves)
    backward = staticmethod(_backward_waves)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _vmap(_Waves, info, in_dims, args)


# The operators carry the same autograd rules, for compiled and exported graphs.
ray_sums_op.register_autograd(_backward_sums, setup_context=_setup_sums)
ray_waves_op.register_autograd(_backward_waves, setup_context=_setup_waves)
