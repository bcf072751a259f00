"""The Gaussian kernel and its gradient in blocks, exact wherever the rows lie.

A block of kernel values is one product, ``-½|a - b|² = ⟨a, b⟩ - ½|a|² - ½|b|²`` of scaled rows
about a centre. Its rounding grows with ``|a|²``; it matters only where the kernel is not 0, which
far from the centre means rows close to each other. Blocks with such pairs are formed from
differences, ten times as slow and exact; blocks of all other pairs are as fast as ever.

All rows stand in one list, those of y first: a tile is a part of the matrix of all pairs, and small
problems are one tile.

Letters: B sets, N and M rows of each, L = M + N, D features, K scales; n and m rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ncfd._centre import centre
from ncfd._devices import widest_float

#: Rows and columns of a block of kernel values: inside a core's cache on a CPU, where each value
#: is passed over six times; few launches on an accelerator.
_EDGE = {"cpu": 256, "accelerator": 4096}

#: ``½|a|²`` up to which the rounding of a product does not matter: 3e-5 of a kernel value in
#: float32, 1e-10 in float64.
_NEAR_CENTRE = {torch.float32: 128.0, torch.float64: 1e5}

#: Mean of ``½|a|²``, each counted as 1 at most, from which on ``k - 1`` is of order 1 for so many
#: pairs that the last digit of 1 is that of their sum.
_WIDE = 0.25

#: ``½|a|²`` up to which sums of squares give the gradient of a scale for each feature.
_SQUARES_KEEP_DIGITS = 8.0

#: Entries of differences held at once.
_DIFFERENCES = {"cpu": 2**18, "accelerator": 2**24}


class Pairs(NamedTuple):
    """What ``Σ_ij w_i w_j (k(x_i, y_j) - 1)`` is taken over: pairs in x, in y, and between them."""

    x: Tensor  # (B, N, D)
    y: Tensor  # (B, M, D); M may be 0
    w_x: Tensor  # (B, N)
    w_y: Tensor  # (B, M)
    scale: Tensor  # (K, D), or (K, 1)
    unit: Tensor | None  # (B, 1, 1) that multiplies it, without a gradient
    #: Rows of x whose pairs with each other are summed.
    own: int
    chunk_size: int | None

    @property
    def device(self) -> str:
        """The key of the sizes above."""
        return "cpu" if self.x.device.type == "cpu" else "accelerator"

    def rows(self) -> Tensor:
        """All of them, (B, L, D)."""
        return torch.cat((self.y, self.x), 1)

    def weights(self) -> Tensor:
        """``(B, L, 2)``: of x in the first column, of y in the second, and 0."""
        M = self.y.shape[1]
        w = self.w_x.new_zeros(*self.w_x.shape[:1], M + self.w_x.shape[1], 2)
        w[:, M:, 0] = self.w_x
        w[:, :M, 1] = self.w_y
        return w


class Tile(NamedTuple):
    """A part of the matrix of all pairs."""

    rows: slice
    columns: slice
    #: It stands for the transposed one, too; else it lies on the diagonal.
    mirrored: bool

    def both(self) -> Iterator[tuple[slice, slice, bool]]:
        """The rows and their others; the columns and theirs, with the matrix turned."""
        yield self.rows, self.columns, False
        if self.mirrored:
            yield self.columns, self.rows, True

    def touches(self, part: slice) -> bool:
        """Whether any of its rows or columns lies in ``part``."""
        return any(_overlap(own, part) is not None for own, _, _ in self.both())


def _overlap(part: slice, other: slice) -> slice | None:
    start, stop = max(part.start, other.start), min(part.stop, other.stop)
    return slice(start, stop) if start < stop else None


def tiles(pairs: Pairs) -> tuple[list[Tile], list[Tile]]:
    """Those in y alone, and the others. Tiles with both sides in their rows are of the latter."""
    batch, N, _ = pairs.x.shape
    M, own, chunk = pairs.y.shape[1], pairs.own, pairs.chunk_size
    edge = max(32, int(_EDGE[pairs.device] / batch**0.5))
    side = edge if chunk is None else min(edge, chunk)
    if M + own <= side:
        # What is outside of it: the other rows of x beside y.
        return [], [Tile(slice(0, M + own), slice(0, M + own), False)] + [
            Tile(slice(0, M), part, True) for part in _parts(M + own, M + N, side if M else 0)
        ]
    beside = []
    for rows in _parts(0, M, edge):
        width = rows.stop - rows.start
        height = max(edge, edge * edge // width) if chunk is None else chunk
        beside += [Tile(rows, columns, True) for columns in _parts(M, M + N, height)]
    return _triangle(0, M, side), _triangle(M, M + own, side) + beside


def _parts(start: int, stop: int, step: int) -> list[slice]:
    return [slice(k, min(k + step, stop)) for k in range(start, stop, step)] if step else []


def _triangle(start: int, stop: int, step: int) -> list[Tile]:
    """Each pair of some rows once."""
    parts = _parts(start, stop, step)
    return [Tile(a, b, a != b) for k, a in enumerate(parts) for b in parts[k:]]


class Shape(NamedTuple):
    """Scales whose exponents are multiples of one matrix."""

    base: Tensor  # (D,), (1,) or (), with a unit (B, 1, D) or (B, 1, 1)
    #: ``(K,)`` multiples of the exponents; None for one scale, the base itself.
    factors: Tensor | None
    scales: slice  # its scales


def shapes(pairs: Pairs) -> list[Shape]:
    """One for each scale, or one for all where they are isotropic."""
    scale, K, unit = pairs.scale, pairs.scale.shape[0], pairs.unit
    if K > 1 and scale.shape[1] == 1:
        # The largest as the unit of length: squares of rows stay in range whatever theirs.
        largest = torch.linalg.vector_norm(scale.detach(), torch.inf)
        largest = largest.clamp_min(torch.finfo(scale.dtype).tiny)
        factors = (scale[:, 0] / largest).square()
        return [Shape(largest if unit is None else largest * unit, factors, slice(0, K))]
    return [
        Shape(scale[k] if unit is None else scale[k] * unit, None, slice(k, k + 1))
        for k in range(K)
    ]


class Block(NamedTuple):
    """One block; for the backward only what that needs is kept. Each (B, n, m)."""

    #: ``k - 1``, added over the scales.
    less_one: Tensor | None
    #: Its derivative after the exponent of the base; None for one scale, where it is ``k``.
    slope: Tensor | None
    exponents: Tensor | None  # of the base, with several scales
    #: The sets whose values come from differences, (b,); None without any.
    apart: Tensor | None


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    w_x: bool
    w_y: bool
    scale: bool

    def rows(self, pairs: Pairs) -> slice:
        """Of which rows."""
        M = pairs.y.shape[1]
        return slice(0 if self.y else M, M + pairs.x.shape[1] if self.x else M)

    def of(self, pairs: Pairs, tile: Tile) -> bool:
        """Whether any of them has this tile in it."""
        weights = self._replace(x=self.w_x, y=self.w_y)
        return self.scale or any(tile.touches(needs.rows(pairs)) for needs in (self, weights))

    def kept(self, block: Block) -> Block:
        """What the backward wants of a block."""
        if block.exponents is None:
            return block
        return Block(
            block.less_one if self.w_x or self.w_y else None,
            block.slope if self.x or self.y else None,
            block.exponents if self.scale else None,
            block.apart,
        )


class Kernel:
    """Blocks of kernel values of one shape for some tiles, whose rows share a centre."""

    def __init__(
        self,
        pairs: Pairs,
        rows: Tensor,
        shape: Shape,
        origin: Tensor,
        parts: list[Tile],
        wide: bool | None = None,
    ) -> None:
        self.device, self.shape, self.centre, self.tiles = pairs.device, shape, origin, parts
        self._rows = torch.sub(rows, origin).mul_(shape.base)
        self.half = torch.linalg.vector_norm(self._rows, dim=2).square_().mul_(0.5)
        # The one look at the values; a subclass of tensors has no `tolist`.
        spread = self.half.clamp_max(1).mean(1).amin()
        self.reach, least = map(float, torch.stack((self.half.amax(), spread)).cpu())
        self.wide: bool = least >= _WIDE if wide is None else wide
        limit = _NEAR_CENTRE[rows.dtype]
        self.near = self.reach <= limit  # a NaN is far too: it stays in its set
        if self.near:
            return
        # An infinite row becomes NaN, or it would be one that is merely far from all others.
        self._given = rows + 0 * rows
        # The exponent from which on a row's pairs must be exact: the last digit of ``k - 1``, and
        # the rounding of the product. Near the centre it is exact enough.
        eps = torch.finfo(rows.dtype).eps
        smallest = 1.0 if shape.factors is None else shape.factors.amin()  # the widest kernel
        last = math.log(eps / 8) / smallest
        self._bounds = torch.where(self.half <= limit, torch.inf, last - 32 * eps * self.half)

    def block(self, tile: Tile, needs: Needs | None) -> Block:
        """The values of some rows and columns, and what the backward wants beside them."""
        rows, columns, mirrored = tile
        values = torch.baddbmm(
            self.half[:, columns].unsqueeze(1),
            self._rows[:, rows],
            self._rows[:, columns].transpose(1, 2),
            beta=-1,
        ).sub_(self.half[:, rows].unsqueeze(2))
        apart = None
        if not self.near:
            bound = torch.minimum(
                self._bounds[:, rows].unsqueeze(2), self._bounds[:, columns].unsqueeze(1)
            )
            inexact = ~(values < bound)  # where the product overflows, too
            if not mirrored:
                own = inexact.diagonal(0, 1, 2)
                values.diagonal(0, 1, 2).masked_fill_(own, 0)
                own.zero_()
            found = inexact.flatten(1).any(1).nonzero().squeeze(1)
            if len(found) > 0:
                apart = found
                # Only these pairs: far from each other, distances overflow.
                exact = self._by_differences(tile, apart)
                values[apart] = torch.where(inexact[apart], exact, values[apart])
        if self.shape.factors is not None:
            # Rounding can make the square of a small distance between large numbers negative.
            return Block(*self._mixed(values.clamp_max_(0), needs), apart)
        # Smaller kernel values take long to compute with, and change nothing.
        values.clamp_(-80, 0)
        return Block(values.exp_().sub_(1) if self.wide else less_one(values), None, None, apart)

    def _mixed(
        self, values: Tensor, needs: Needs | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The values of several scales from the exponents of the base."""
        factors = self.shape.factors
        assert factors is not None
        total = torch.zeros_like(values)
        slope = torch.zeros_like(values) if needs is not None and (needs.x or needs.y) else None
        for factor in factors.unbind():
            some = values * factor
            total += some.exp_() if self.wide else less_one(some)
            if slope is not None:
                slope.addcmul_(some, factor)
        if self.wide:
            total -= len(factors)
        elif slope is not None:
            slope += factors.sum()
        return total, slope, values if needs is not None and needs.scale else None

    def _by_differences(self, tile: Tile, sets: Tensor) -> Tensor:
        """Exponents of some sets from differences, in the widest type there is."""
        x, y = self._given[sets, tile.rows], self._given[sets, tile.columns]
        base = self.shape.base
        base = (base[sets] if base.ndim == 3 else base).to(widest_float(x.device))
        distance = torch.cdist(
            x.to(base.dtype) * base,
            y.to(base.dtype) * base,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return distance.square_().mul_(-0.5).clamp_min_(-1e30).to(x.dtype)


def kernels(pairs: Pairs, shape: Shape) -> list[Kernel]:
    """All pairs about a centre of x; those in y about one of their own where y lies far from it."""
    rows, M = pairs.rows(), pairs.y.shape[1]
    in_y, others = tiles(pairs)
    one = Kernel(pairs, rows, shape, centre(pairs.x), in_y + others)
    if one.near or M == 0 or bool(one.half[:, :M].amax() <= _NEAR_CENTRE[rows.dtype]):
        return [one]
    if not in_y:
        beside = Tile(slice(0, M), slice(M, M + pairs.x.shape[1]), True)
        in_y = _triangle(0, M, M)
        others = [*_triangle(M, M + pairs.own, max(1, pairs.own)), beside]
    one.tiles = others
    return [one, Kernel(pairs, rows[:, :M], shape, centre(pairs.y), in_y, one.wide)]


@torch.no_grad()
def lies_apart(pairs: Pairs) -> bool:
    """Whether some row is so far from the centre that products may round too much."""
    return any(not part.near for shape in shapes(pairs) for part in kernels(pairs, shape))


def less_one(exponent: Tensor) -> Tensor:
    """``e^v - 1`` in place, from ``tanh ½v``: half the time of ``expm1``, and as exact."""
    half = exponent.mul_(0.5).tanh_()
    return half.div_(0.5 - 0.5 * half)


class Part(NamedTuple):
    """What the backward wants of a :class:`Kernel`."""

    shape: Shape
    centre: Tensor
    reach: float
    tiles: list[Tile]
    blocks: Iterable[Block]


class Kept(NamedTuple):
    """What the forward leaves for the backward."""

    weights: Tensor
    parts: list[Part]


def forward(pairs: Pairs, needs: Needs | None) -> tuple[Tensor, Kept]:
    """The sums ``(3, B)``, and the blocks that the gradients in ``needs`` want."""
    x, y, w = pairs.x, pairs.y, pairs.weights()
    kept = Kept(w, [])
    exact = w.to(widest_float(x.device))
    total = exact.new_zeros(x.shape[0], 2, 2)
    for shape in shapes(pairs):
        for source in kernels(pairs, shape):
            wanted, blocks = [], []
            for tile in source.tiles:
                later = needs if needs is not None and needs.of(pairs, tile) else None
                block = source.block(tile, later)
                assert block.less_one is not None
                if later is not None:
                    wanted.append(tile)
                    blocks.append(later.kept(block))
                product = torch.bmm(block.less_one, w[:, tile.columns])
                sums = torch.bmm(exact[:, tile.rows].transpose(1, 2), product.to(exact.dtype))
                total += sums
                if tile.mirrored:
                    total += sums.transpose(1, 2)
            kept.parts.append(Part(shape, source.centre, source.reach, wanted, blocks))
    in_x, between, _, in_y = (total / pairs.scale.shape[0]).flatten(1).unbind(1)
    if x.shape == y.shape and pairs.own == x.shape[1]:
        # Equal samples cancel to the last bit.
        same = (x == y).flatten(1).all(1) & (pairs.w_x == pairs.w_y).all(1)
        in_y, between = (torch.where(same, in_x, v) for v in (in_y, between))
    return torch.stack((in_x, in_y, between)).to(x.dtype), kept


def _again(pairs: Pairs, needs: Needs) -> Iterator[Part]:
    """The same as nothing was kept."""
    for shape in shapes(pairs):
        for source in kernels(pairs, shape):
            wanted = [tile for tile in source.tiles if needs.of(pairs, tile)]
            blocks = (source.block(tile, needs) for tile in wanted)
            yield Part(shape, source.centre, source.reach, wanted, blocks)


class Gradients(NamedTuple):
    """The gradients that are wanted; None for the others."""

    x: Tensor | None
    y: Tensor | None
    w_x: Tensor | None
    w_y: Tensor | None
    scale: Tensor | None


def backward(pairs: Pairs, grad: Tensor, kept: Kept | None, needs: Needs) -> Gradients:
    """The gradients of ``Σ grad · forward``, ``grad (3, B)``, from the blocks kept or anew."""
    in_x, in_y, between = (grad / pairs.scale.shape[0]).unbind()
    # Each pair of one side twice: rows and columns of the whole matrix get the same.
    share = torch.stack((2 * in_x, between, between, 2 * in_y), 1).view(-1, 2, 2)
    slopes = _Slopes(pairs, share, needs, pairs.weights() if kept is None else kept.weights)
    for part in _again(pairs, needs) if kept is None else kept.parts:
        slopes.start(part)
        for tile, block in zip(part.tiles, part.blocks, strict=True):
            slopes.weigh(block, tile)
            slopes.add(block, tile)
        slopes.finish(part)
    return slopes.found()


class _Slopes:
    """What the gradients are made of, shape by shape.

    With ``G = w_i w_j k(z_i, z_j)`` and r its sums over j, ``∂/∂z = σ² (G z - r z)``, and
    ``∂/∂σ_d = σ_d Σ (z_d (G z)_d - r z_d²)``. Rows count from the centre here, so nothing cancels
    but in blocks whose pairs are close to each other and far from it: these come from differences.
    """

    def __init__(self, pairs: Pairs, share: Tensor, needs: Needs, w: Tensor) -> None:
        self.pairs, self.share, self.needs, self.w = pairs, share, needs, w
        self.given = pairs.rows()
        self.wanted = needs.rows(pairs)
        self.of_rows = self.of_weights = self.of_scale = None
        if needs.x or needs.y:
            self.of_rows = torch.zeros_like(self.given[:, self.wanted])
        if needs.w_x or needs.w_y:
            self.of_weights = torch.zeros_like(self.w[..., 0])
        if needs.scale:
            self.of_scale = torch.zeros_like(pairs.scale)

    def found(self) -> Gradients:
        """The gradients, each in a tensor of its own."""
        M, needs = self.pairs.y.shape[1], self.needs
        of_rows, of_weights = self.of_rows, self.of_weights
        x = y = of_rows
        if of_rows is not None and needs.x and needs.y:
            x, y = of_rows[:, M:].clone(), of_rows[:, :M].clone()
        return Gradients(
            x if needs.x else None,
            y if needs.y else None,
            of_weights[:, M:].clone() if of_weights is not None and needs.w_x else None,
            of_weights[:, :M].clone() if of_weights is not None and needs.w_y else None,
            self.of_scale,
        )

    def start(self, part: Part) -> None:
        """Rows about the centre, within ``√(2 reach)`` of it when scaled."""
        needs, self.factors = self.needs, part.shape.factors
        #: The scale's gradient by products; several isotropic ones have it from the exponents.
        self.stretched = needs.scale and self.factors is None
        self.of_factors = None if self.factors is None else torch.zeros_like(self.factors)
        self.moved = part.tiles != [] and (needs.x or needs.y or self.stretched)
        if not self.moved:
            return
        # Others may be far.
        z = self.given[:, : max(tile.columns.stop for tile in part.tiles)] - part.centre
        if self.stretched and not part.reach <= _SQUARES_KEEP_DIGITS:
            z = z.to(widest_float(z.device))
        self.z = z
        self.r = z.new_zeros(z.shape[:2])
        # G z, of the wanted rows alone.
        self.here = _overlap(self.wanted, slice(0, z.shape[1]))
        self.pull = None if self.here is None else torch.zeros_like(z[:, self.here])
        self.cross = self.apart = z.new_zeros(z.shape[2])

    def weigh(self, block: Block, tile: Tile) -> None:
        """The gradient of the weights."""
        if self.of_weights is None:
            return
        assert block.less_one is not None
        side = self.w.new_zeros(self.w.shape[1], 2)
        M = self.pairs.y.shape[1]
        side[M:, 0] = side[:M, 1] = 1
        for rows, others, turned in tile.both():
            values = block.less_one.transpose(1, 2) if turned else block.less_one
            slope = torch.bmm(torch.bmm(values, self.w[:, others]), self.share)
            self.of_weights[:, rows] += (slope * side[rows]).sum(2)

    def add(self, block: Block, tile: Tile) -> None:
        """Take in a block for the gradients of rows and scale."""
        if not (self.moved or self.needs.scale):
            return
        rows, columns, mirrored = tile
        if not (mirrored or self.needs.scale):
            # Of all pairs of some rows those of the rows that want them.
            kept = _overlap(rows, self.wanted)
            if kept is None:
                return
            rows = kept
        inner = slice(rows.start - tile.rows.start, rows.stop - tile.rows.start)
        w = torch.bmm(self.w[:, rows], self.share)
        G = torch.bmm(w, self.w[:, columns].transpose(1, 2))
        if self.factors is not None and self.needs.scale:
            assert block.exponents is not None
            assert self.of_factors is not None
            weighed = block.exponents * G
            for k, factor in enumerate(self.factors):
                part = (block.exponents * factor).exp_().mul_(weighed).sum()
                self.of_factors[k].add_(part, alpha=1.0 if mirrored else 0.5)
        if not self.moved:
            return
        if block.slope is not None:
            G.mul_(block.slope[:, inner])
        else:
            assert block.less_one is not None
            G.addcmul_(G, block.less_one[:, inner])
        if not mirrored:
            G.diagonal(inner.start, 1, 2).zero_()  # pairs without a distance
        tile = Tile(rows, columns, mirrored)
        if block.apart is not None:
            self._by_differences(G[block.apart], block.apart, tile)
            if len(block.apart) == len(G):
                return
            G.index_fill_(0, block.apart, 0)
        self._by_products(G.to(self.z.dtype), tile)

    def _by_products(self, G: Tensor, tile: Tile) -> None:
        z, cross_wanted = self.z, self.stretched
        for rows, others, turned in tile.both():
            matrix = G.transpose(1, 2) if turned else G
            kept = _overlap(rows, self.wanted)
            # Either product gives that of the scale, the last one if no row wants it.
            whole = cross_wanted and (kept is not None or turned or not tile.mirrored)
            if self.stretched:
                self.r[:, rows] += matrix.sum(2)
            elif kept is not None:
                matrix = matrix[:, kept.start - rows.start : kept.stop - rows.start]
                self.r[:, kept] += matrix.sum(2)
            if kept is None and not whole:
                continue
            product = torch.bmm(matrix, z[:, others])
            if whole:
                cross_wanted = False
                times = 2 if tile.mirrored else 1
                self.cross = self.cross + times * (product * z[:, rows]).sum((0, 1))
            if kept is not None:
                if self.stretched:
                    product = product[:, kept.start - rows.start : kept.stop - rows.start]
                self._pulled(kept).add_(product)

    def _pulled(self, rows: slice) -> Tensor:
        """Those of ``G z``, of wanted rows."""
        assert self.pull is not None
        assert self.here is not None
        return self.pull[:, rows.start - self.here.start : rows.stop - self.here.start]

    def _by_differences(self, G: Tensor, sets: Tensor, tile: Tile) -> None:
        """The same for ``G (b, n, m)`` of some sets, which stand in no r."""
        for rows, others, turned in tile.both():
            kept = _overlap(rows, self.wanted)
            counts = self.stretched and not turned
            if kept is None and not counts:
                continue
            xs, ys = self.given[sets, rows], self.given[sets, others]
            matrix = G.transpose(1, 2) if turned else G
            pulled = torch.zeros_like(xs)
            b, m, D = ys.shape
            step = max(1, _DIFFERENCES[self.pairs.device] // (b * m * D))
            for k in range(0, xs.shape[1], step):
                gap = ys.unsqueeze(1) - xs[:, k : k + step].unsqueeze(2)  # (b, step, m, D)
                pull = gap * matrix[:, k : k + step].unsqueeze(3)
                pulled[:, k : k + step] = pull.sum(2)
                if counts:
                    share = 1.0 if tile.mirrored else 0.5
                    self.apart = self.apart + share * pull.mul_(gap).sum((0, 1, 2))
            if kept is not None:
                pulled = pulled[:, kept.start - rows.start : kept.stop - rows.start]
                self._pulled(kept)[sets] += pulled

    def finish(self, part: Part) -> None:
        """Add the gradients of this shape."""
        base, here = part.shape.base, self.here if self.moved else None
        if here is not None:
            assert self.pull is not None
            assert self.of_rows is not None
            # Twice the base, whose square may leave the range.
            slope = self.pull.sub_(self.r[:, here].unsqueeze(2) * self.z[:, here]).mul_(base)
            self.of_rows[:, : here.stop - self.wanted.start].add_(slope.mul_(base))
        if self.of_scale is None:
            return
        scale = self.pairs.scale[part.shape.scales]
        if self.of_factors is not None:
            # A unit is left out: only a scale that is given has a gradient.
            self.of_scale.add_((2 * (scale[:, 0] / base) * self.of_factors / base).unsqueeze(1))
        elif self.moved:
            squares = _weighed_squares(self.r, self.z)
            slope = scale * (self.cross - squares - self.apart)  # (1, D)
            self.of_scale[part.shape.scales] += slope.sum_to_size(self.of_scale[:1].shape)


def _weighed_squares(w: Tensor, x: Tensor) -> Tensor:
    """``Σ_bn w_bn x_bnd²``, (D,): in pieces that a cache holds."""
    step = _EDGE["cpu"]
    pieces = zip(torch.split(w, step, 1), torch.split(x, step, 1), strict=True)
    return sum(
        (torch.matmul(v.unsqueeze(1), piece.square()).sum((0, 1)) for v, piece in pieces),
        start=x.new_zeros(x.shape[2]),
    )
