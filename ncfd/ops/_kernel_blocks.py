"""The Gaussian kernel and its gradient in blocks, exact wherever the rows lie.

A block of kernel values is one product, ``-½|a - b|² = ⟨a, b⟩ - ½|a|² - ½|b|²`` of scaled rows
about a centre. Its rounding grows with ``|a|²``; it matters only where the kernel is not 0, which
far from the centre means rows close to each other. Blocks with such pairs are formed from
differences, ten times as slow and exact; blocks of all other pairs are as fast as ever.

Letters: B sets, N and M rows of each, D features, K scales; n and m rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ncfd._devices import widest_float

#: Rows and columns of a block of kernel values: inside a core's cache on a CPU, where each value
#: is passed over six times; few launches on an accelerator.
_EDGE = {"cpu": 256, "accelerator": 4096}

#: ``½|a|²`` up to which the rounding of a product does not matter: 3e-5 of a kernel value in
#: float32, 1e-10 in float64.
_NEAR_CENTRE = {torch.float32: 128.0, torch.float64: 1e5}

#: ``½|a|²`` up to which sums of squares give the gradient of a scale for each feature.
_SQUARES_KEEP_DIGITS = 8.0

#: Entries of differences held at once.
_DIFFERENCES = {"cpu": 2**18, "accelerator": 2**24}


class Pairs(NamedTuple):
    """What ``Σ_ij w_i w_j (k(x_i, y_j) - 1)`` is taken over."""

    x: Tensor  # (B, N, D)
    y: Tensor | None  # (B, M, D); None for the pairs of x with itself
    w_x: Tensor  # (B, N)
    w_y: Tensor | None  # (B, M)
    scale: Tensor  # (K, D), or (K, 1)
    unit: Tensor | None  # (B, 1, 1) that multiplies it, without a gradient
    centre: Tensor  # (B, 1, D)
    #: The pairs of x with itself in the blocks of two sides, not each once.
    whole: bool
    chunk_size: int | None

    @property
    def other(self) -> Tensor:
        """The rows of the columns."""
        return self.x if self.y is None else self.y

    @property
    def w_other(self) -> Tensor:
        """Their weights."""
        return self.w_x if self.w_y is None else self.w_y

    @property
    def device(self) -> str:
        """The key of the sizes above."""
        return "cpu" if self.x.device.type == "cpu" else "accelerator"


class Shape(NamedTuple):
    """Scales whose exponents are multiples of one matrix."""

    base: Tensor  # (D,) or (1,), with a unit (B, 1, D) or (B, 1, 1)
    #: ``(K,)`` multiples of the exponents; None for one scale, the base itself.
    factors: Tensor | None
    scales: slice  # its scales


class Block(NamedTuple):
    """One block, as it is kept for the backward."""

    #: ``k - 1`` of one scale; of several, the exponents of the base. (B, n, m)
    values: Tensor
    #: The sets whose values come from differences, (b,); None without any.
    apart: Tensor | None


def shapes(pairs: Pairs) -> list[Shape]:
    """One for each scale, or one for all where they are isotropic."""
    scale, K = pairs.scale, pairs.scale.shape[0]
    unit = 1.0 if pairs.unit is None else pairs.unit
    if K > 1 and scale.shape[1] == 1:
        # The largest as the unit of length: squares of rows stay in range whatever theirs.
        largest = scale.detach().abs().amax()
        largest = torch.where(largest == 0, 1.0, largest)
        factors = (scale[:, 0] / largest).square()
        return [Shape(largest * unit, factors, slice(0, K))]
    return [Shape(scale[k] * unit, None, slice(k, k + 1)) for k in range(K)]


def tiles(pairs: Pairs) -> Iterator[tuple[slice, slice, int]]:
    """Parts of the rows of both sides, and how often their pairs count (twice off the diagonal)."""
    batch, N, _ = pairs.x.shape
    edge = max(32, int(_EDGE[pairs.device] / batch**0.5))
    if pairs.y is None and not pairs.whole:
        edge = edge if pairs.chunk_size is None else min(edge, pairs.chunk_size)
        parts = [slice(k, k + edge) for k in range(0, N, edge)]
        for k, rows in enumerate(parts):
            for columns in parts[k:]:
                yield rows, columns, 1 if rows == columns else 2
        return
    M = pairs.other.shape[1]
    width = min(M, edge)
    height = max(edge, edge * edge // width) if pairs.chunk_size is None else pairs.chunk_size
    for k in range(0, N, height):
        for j in range(0, M, width):
            yield slice(k, k + height), slice(j, j + width), 1


def _augmented(x: Tensor, centre: Tensor, base: Tensor, *, left: bool) -> Tensor:
    """Scaled samples with two columns more, so that one product gives ``-½|x - y|²``, whole.

    ``(x, ½|x|², 1)`` on the left, ``(y, -1, -½|y|²)`` on the right.
    """
    batch, rows, dim = x.shape
    found = x.new_empty(batch, rows, dim + 2)
    scaled, norm, one = found[..., :dim], dim + (not left), dim + left
    torch.sub(x, centre, out=scaled)
    scaled.mul_(base)
    half = torch.linalg.vector_norm(scaled, dim=2).square_().mul_(0.5)
    sign = 1 if left else -1
    found[..., norm] = half.mul_(sign)
    found[..., one] = sign
    return found


class Kernel:
    """Blocks of kernel values of one shape."""

    def __init__(self, pairs: Pairs, shape: Shape) -> None:
        self.pairs, self.shape = pairs, shape
        x, dim = pairs.x, pairs.x.shape[2]
        self.left = _augmented(x, pairs.centre, shape.base, left=True)
        half = [self.left[..., dim]]
        if pairs.y is None:
            self.right = self.left.clone()
            self.right[..., dim] = -1
            torch.neg(half[0], out=self.right[..., dim + 1])
        else:
            self.right = _augmented(pairs.y, pairs.centre, shape.base, left=False)
            half.append(-self.right[..., dim + 1])
        largest = half[0].amax() if pairs.y is None else torch.maximum(*(v.amax() for v in half))
        #: The largest ``½|a|²``: the one look at the values.
        self.reach: float = largest.item()
        limit = _NEAR_CENTRE[x.dtype]
        self.bounds = None
        if self.reach <= limit:  # a NaN is far too: it stays in its set
            return
        # The exponent from which on a row's pairs must be exact: the last digit of ``k - 1``, and
        # the rounding of the product. Near the centre it is exact enough.
        eps = torch.finfo(x.dtype).eps
        smallest = 1.0 if shape.factors is None else shape.factors.amin()  # the widest kernel
        last = math.log(eps / 8) / smallest
        self.bounds = [torch.where(v <= limit, torch.inf, last - 32 * eps * v) for v in half]

    def block(self, rows: slice, columns: slice) -> Block:
        """The values of some rows and columns."""
        pairs = self.pairs
        values = torch.bmm(self.left[:, rows], self.right[:, columns].transpose(1, 2))
        # Rounding can make the square of a small distance between large numbers negative.
        values.clamp_max_(0)
        apart = None
        if self.bounds is not None:
            bound = torch.minimum(
                self.bounds[0][:, rows].unsqueeze(2), self.bounds[-1][:, columns].unsqueeze(1)
            )
            inexact = ~(values < bound)  # where the product overflows, too
            if pairs.y is None:
                own = diagonal(inexact, rows, columns)
                diagonal(values, rows, columns).masked_fill_(own, 0)
                own.zero_()
            found = inexact.flatten(1).any(1).nonzero().squeeze(1)
            if len(found) > 0:
                apart = found
                # Only these pairs: equal samples cancel where each pair is formed alike everywhere.
                exact = self._by_differences(rows, columns, apart)
                values[apart] = torch.where(inexact[apart], exact, values[apart])
        return Block(less_one(values) if self.shape.factors is None else values, apart)

    def _by_differences(self, rows: slice, columns: slice, sets: Tensor) -> Tensor:
        """Exponents of some sets from differences, in the widest type there is."""
        x, y = self.pairs.x[sets, rows], self.pairs.other[sets, columns]
        base = self.shape.base
        base = (base[sets] if base.ndim == 3 else base).to(widest_float(x.device))
        distance = torch.cdist(
            x.to(base.dtype) * base,
            y.to(base.dtype) * base,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return distance.square_().mul_(-0.5).clamp_min_(-1e30).to(x.dtype)


@torch.no_grad()
def lies_apart(pairs: Pairs) -> bool:
    """Whether some row is so far from the centre that products may round too much."""
    return any(Kernel(pairs, shape).bounds is not None for shape in shapes(pairs))


def diagonal(values: Tensor, rows: slice, columns: slice) -> Tensor:
    """The pairs of a row with itself in a block of one side: a view, often empty."""
    return values.diagonal(rows.start - columns.start, 1, 2)


def less_one(exponent: Tensor) -> Tensor:
    """``e^v - 1`` in place, from ``tanh ½v``: half the time of ``expm1``, and as exact."""
    half = exponent.mul_(0.5).tanh_()
    return half.div_(0.5 - 0.5 * half)


def kernel(values: Tensor, factors: Tensor | None) -> Tensor:
    """``Σ_k (k - 1)`` of a block's values."""
    if factors is None:
        return values
    return torch.stack([less_one(values * factor) for factor in factors.unbind()]).sum(0)


def slope(values: Tensor, factors: Tensor | None) -> Tensor:
    """The derivative of :func:`kernel` after the exponent, a new tensor."""
    if factors is None:
        return values + 1
    parts = [(values * factor).exp_().mul_(factor) for factor in factors.unbind()]
    return torch.stack(parts).sum(0)


class Kept(NamedTuple):
    """What the forward leaves for the backward."""

    blocks: list[Block]
    reach: list[float]  # of each shape


def forward(pairs: Pairs, keep: bool) -> tuple[Tensor, Kept]:
    """The sums ``(B,)``, and the blocks if ``keep``."""
    x, w_x, w_other, K = pairs.x, pairs.w_x, pairs.w_other, pairs.scale.shape[0]
    kept = Kept([], [])
    total = torch.zeros(x.shape[0], dtype=widest_float(x.device), device=x.device)
    for shape in shapes(pairs):
        source = Kernel(pairs, shape)
        kept.reach.append(source.reach)
        for rows, columns, count in tiles(pairs):
            block = source.block(rows, columns)
            if keep:
                kept.blocks.append(block)
            values = kernel(block.values, shape.factors)
            part = torch.bmm(values, w_other[:, columns].unsqueeze(2)).squeeze(2)
            total += count * (part * w_x[:, rows]).sum(1)
    return (total / K).to(x.dtype), kept


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    w_x: bool
    w_y: bool
    scale: bool


class Gradients(NamedTuple):
    """The gradients that are wanted; None for the others."""

    x: Tensor | None
    y: Tensor | None
    w_x: Tensor | None
    w_y: Tensor | None
    scale: Tensor | None


def backward(pairs: Pairs, grad: Tensor, kept: Kept, needs: Needs) -> Gradients:
    """The gradients of ``Σ grad · forward``, ``grad (B,)``, from the blocks kept or anew."""
    tensors = pairs.x, pairs.y, pairs.w_x, pairs.w_y, pairs.scale
    found = Gradients(
        *(
            torch.zeros_like(v) if needed and v is not None else None
            for v, needed in zip(tensors, needs, strict=True)
        )
    )
    share = (grad / pairs.scale.shape[0]).reshape(-1, 1)  # (B, 1)
    x = pairs.x - pairs.centre
    y = x if pairs.y is None else pairs.y - pairs.centre
    blocks = iter(kept.blocks)
    for k, shape in enumerate(shapes(pairs)):
        source = None if kept.blocks else Kernel(pairs, shape)
        reach = kept.reach[k] if source is None else source.reach
        part = _Slopes(pairs, shape, share, needs)
        part.start(x, y, reach)
        for rows, columns, count in tiles(pairs):
            block = next(blocks) if source is None else source.block(rows, columns)
            part.weights(found, block, rows, columns, count)
            part.add(block, rows, columns, count)
        part.finish(found)
    if found.w_x is not None and pairs.y is None:
        found.w_x.mul_(2)
    return found


class _Slopes:
    """What the gradients of one shape are made of.

    With ``G = w_i w_j k(x_i, y_j)`` and r and c its sums over rows and columns,
    ``∂/∂x = σ² (G y - r x)``, and ``∂/∂σ_d = σ_d Σ (2 x_d (G y)_d - r x_d² - c y_d²)``. Rows count
    from the centre here, so nothing cancels but in blocks whose pairs are close to each other and
    far from it: these come from differences.
    """

    def __init__(self, pairs: Pairs, shape: Shape, share: Tensor, needs: Needs) -> None:
        self.pairs, self.shape, self.share, self.needs = pairs, shape, share, needs
        self.alone = pairs.y is None
        #: The scale's gradient by products; several isotropic ones have it from the exponents.
        self.stretched = needs.scale and shape.factors is None
        self.of_factors = None if shape.factors is None else torch.zeros_like(shape.factors)

    def start(self, x: Tensor, y: Tensor, reach: float) -> None:
        """Rows about the centre, within ``√(2 reach)`` of it when scaled."""
        needs = self.needs
        if self.stretched and not reach <= _SQUARES_KEEP_DIGITS:
            wide = widest_float(x.device)
            x = x.to(wide)
            y = x if self.alone else y.to(wide)
        self.x, self.y = x, y
        self.r, self.c = x.new_zeros(x.shape[:2]), y.new_zeros(y.shape[:2])
        # G y and Gᵀ x; what only the scale wants is not stored.
        self.gy = torch.zeros_like(self.x) if needs.x else None
        self.gx = torch.zeros_like(self.y) if needs.y else None
        self.cross, self.apart = x.new_zeros(x.shape[2]), x.new_zeros(x.shape[2])

    def weights(
        self, found: Gradients, block: Block, rows: slice, columns: slice, count: int
    ) -> None:
        """The gradient of the weights."""
        into = found.w_y if not self.alone else found.w_x if count == 2 else None
        if found.w_x is None and into is None:
            return
        pairs, values = self.pairs, kernel(block.values, self.shape.factors)
        if found.w_x is not None:
            v = pairs.w_other[:, columns].unsqueeze(2)
            found.w_x[:, rows] += self.share * torch.bmm(values, v).squeeze(2)
        if into is not None:
            w = self.share * pairs.w_x[:, rows]
            into[:, columns] += torch.bmm(w.unsqueeze(1), values).squeeze(1)

    def add(self, block: Block, rows: slice, columns: slice, count: int) -> None:
        """Take in a block."""
        if not (self.needs.x or self.needs.y or self.needs.scale):
            return
        w = (self.share * self.pairs.w_x[:, rows]).unsqueeze(2)
        v = self.pairs.w_other[:, columns].unsqueeze(1)
        if self.of_factors is not None and self.needs.scale:
            weighed = block.values * w * v
            for k, factor in enumerate(self.shape.factors):  # type: ignore[arg-type]  # there, as of_factors is
                self.of_factors[k] += count * ((block.values * factor).exp_() * weighed).sum()
        if not (self.needs.x or self.needs.y or self.stretched):
            return
        G = slope(block.values, self.shape.factors).mul_(w).mul_(v)
        if self.alone:
            diagonal(G, rows, columns).zero_()  # pairs without a distance
        if block.apart is not None:
            self._by_differences(G[block.apart], block.apart, rows, columns, count)
            if len(block.apart) == len(G):
                return
            G.index_fill_(0, block.apart, 0)
        self._by_products(G, rows, columns, count)

    def _by_products(self, G: Tensor, rows: slice, columns: slice, count: int) -> None:
        G = G.to(self.x.dtype)
        xs, ys = self.x[:, rows], self.y[:, columns]
        self.r[:, rows] += G.sum(2)
        if not self.alone or count == 2:
            (self.r if self.alone else self.c)[:, columns] += G.sum(1)
        gy, gx = self.gy, self.gx
        if gy is not None or (self.stretched and gx is None):  # either gives that of the scale
            product = torch.bmm(G, ys)
            if gx is None and self.stretched:
                self.cross += count * (product * xs).sum((0, 1))
            if gy is not None:
                gy[:, rows] += product
        if gx is not None:
            product = torch.bmm(G.transpose(1, 2), xs)
            gx[:, columns] += product
            if self.stretched:
                self.cross += (product * ys).sum((0, 1))
        elif gy is not None and count == 2:
            gy[:, columns] += torch.bmm(G.transpose(1, 2), xs)

    def _by_differences(
        self, G: Tensor, sets: Tensor, rows: slice, columns: slice, count: int
    ) -> None:
        """The same for ``G (b, n, m)`` of some sets, which stand in neither r nor c."""
        pairs = self.pairs
        xs, ys = pairs.x[sets, rows], pairs.other[sets, columns]
        b, m, D = ys.shape
        step = max(1, _DIFFERENCES[pairs.device] // (b * m * D))
        down = torch.zeros_like(ys)
        for k in range(0, xs.shape[1], step):
            gap = ys.unsqueeze(1) - xs[:, k : k + step].unsqueeze(2)  # (b, step, m, D)
            pull = gap * G[:, k : k + step].unsqueeze(3)
            if self.gy is not None:
                part = slice(rows.start + k, min(rows.start + k + step, rows.stop))
                self.gy[sets, part] += pull.sum(2)
            down -= pull.sum(1)
            if self.stretched:
                self.apart += count * pull.mul_(gap).sum((0, 1, 2))
        if self.gx is not None:
            self.gx[sets, columns] += down
        elif self.gy is not None and count == 2:
            self.gy[sets, columns] += down

    def finish(self, found: Gradients) -> None:
        """Add the gradients of this shape."""
        if not (self.needs.x or self.needs.y or self.needs.scale):
            return
        base, gy, gx = self.shape.base, self.gy, self.gx
        # Twice the base, whose square may leave the range.
        if found.x is not None and gy is not None:
            gy.sub_(self.r.unsqueeze(2) * self.x).mul_(base)
            found.x.add_(gy.mul_(base), alpha=2 if self.alone else 1)
        if found.y is not None and gx is not None:
            gx.sub_(self.c.unsqueeze(2) * self.y).mul_(base)
            found.y.add_(gx.mul_(base))
        if found.scale is None:
            return
        scale = self.pairs.scale[self.shape.scales]
        if self.of_factors is not None:
            # A unit is left out: only a scale that is given has a gradient.
            found.scale.add_((2 * (scale[:, 0] / base) * self.of_factors / base).unsqueeze(1))
            return
        own = _weighed_squares(self.r, self.x)
        other = own if self.alone else _weighed_squares(self.c, self.y)
        # Own pairs in blocks of two sides have the sums over their columns in their rows.
        slope = scale * (2 * self.cross - own - other - self.apart)  # (1, D)
        found.scale[self.shape.scales] = slope.sum_to_size(found.scale[:1].shape)


def _weighed_squares(w: Tensor, x: Tensor) -> Tensor:
    """``Σ_bn w_bn x_bnd²``, (D,): in pieces that a cache holds."""
    step = _EDGE["cpu"]
    pieces = zip(torch.split(w, step, 1), torch.split(x, step, 1), strict=True)
    return sum(
        (torch.matmul(v.unsqueeze(1), piece.square()).sum((0, 1)) for v, piece in pieces),
        start=x.new_zeros(x.shape[2]),
    )
