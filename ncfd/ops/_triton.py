"""Triton kernels: phases live on chip only, in the forward and in the backward pass.

A program has a tile of rows of one side (A), and tiles of the other (C) pass by, as in attention.
Forward: A are frequencies, C samples, and cos and sin are summed over C. Backward: with the slope
``e = R cos(θ + δ)`` as in ``_phases.Angle``, the gradient for A is ``e C``. Samples as A give
``dx``, frequencies as A give ``dt``: one kernel, called twice, which forms the phases twice and
stores none.

A program takes a limited stretch of C and writes partial sums, which are added afterwards: enough
programs for the device whatever the shape, no atomics, equal bits in every run.

Phases are in turns, ``θ / 2π``: a subtraction of the nearest integer, exact at every size, brings
them near zero, and two polynomials of 7 terms give cos and sin. `tl.cos` and `tl.sin` reduce the
angle twice, with a branch for large ones: 5720 instructions and 188 registers for the sums at
D = 32 where this takes 1016 and 80 (TF32, compute capability 9.0). The factor
``1 / 2π`` costs a phase less than a unit in its last place: half a unit where the product rounds,
and 4e-8 of the phase since float32 does not hold the factor exactly.

Imported only once the kernels are switched on (``_fused.use_triton``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncfd.ops import _phases

# Aimed at: four for each multiprocessor of a large device. A constant, so that the order of the
# additions, and with it every bit, is the same on all devices.
_PROGRAMS = 512
# As in `_phases`: rows added one after the other in float32.
_SEQUENTIAL_ROWS = 1024


@triton.jit
def _tile(base, start, count, column, dim, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """``(ROWS, WIDTH)`` of a ``(count, dim)`` matrix, from a row and column on; zero beyond."""
    rows = start + tl.arange(0, ROWS)[:, None]
    columns = column + tl.arange(0, WIDTH)[None, :]
    # 64 bits: a matrix may have more than 2^31 numbers.
    at = base + rows.to(tl.int64) * dim + columns
    return tl.load(at, mask=(rows < count) & (columns < dim), other=0.0)


@triton.jit
def _turns(
    a,
    c,
    start_a,
    start_c,
    A,
    C,
    D,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Phases of a tile of rows of a with one of c, in turns."""
    theta = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    for d in range(0, WIDTH, DEPTH):
        left = _tile(a, start_a, A, d, D, BLOCK_A, DEPTH)
        right = _tile(c, start_c, C, d, D, BLOCK_C, DEPTH)
        theta = tl.dot(left, tl.trans(right), theta, input_precision=PRECISION)
    return theta * 0.15915494309189535


@triton.jit
def _near_zero(turns):
    """The same angle in [-½, ½] turns; NaN and infinity become NaN."""
    return turns - tl.floor(turns + 0.5)


# Fitted for the smallest largest error on [-½, ½], the coefficients rounded to float32 one after
# the other and the rest fitted again. Errors in float32: at most 4e-7, 6e-8 in the mean square.
@triton.jit
def _cosine(r):
    """``cos 2πr``; exactly 1 at 0."""
    q = r * r
    p = 6.559455394744873 * q - 25.991901397705078
    p = p * q + 60.1749267578125
    p = p * q - 85.451171875
    p = p * q + 64.9391860961914
    p = p * q - 19.739206314086914
    return p * q + 1.0


@triton.jit
def _sine(r):
    """``sin 2πr``."""
    q = r * r
    p = 3.452265977859497 * q - 15.076295852661133
    p = p * q + 42.08193588256836
    p = p * q - 76.71156311035156
    p = p * q + 81.60576629638672
    p = p * q - 41.34172058105469
    p = p * q + 6.2831854820251465
    return p * r


# Compiled once for all numbers of rows: the last batch of an epoch must not cost seconds.
@triton.jit(do_not_specialize=["F", "N", "stretch"])
def _sums_kernel(
    t,  # (F, D)
    x,  # (N, D)
    w,  # (N,) where WEIGHTED
    cos_part,  # (parts, F)
    sin_part,
    F,
    N,
    D,
    stretch,  # rows of x of one program
    WEIGHTED: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    part = tl.program_id(0)
    start = tl.program_id(1) * BLOCK_A
    cos_sum = tl.zeros((BLOCK_A,), tl.float32)
    sin_sum = tl.zeros((BLOCK_A,), tl.float32)
    for n in range(part * stretch, min(part * stretch + stretch, N), BLOCK_C):
        turns = _turns(t, x, start, n, F, N, D, WIDTH, DEPTH, BLOCK_A, BLOCK_C, PRECISION)
        r = _near_zero(turns)
        rows = n + tl.arange(0, BLOCK_C)
        if WEIGHTED:
            share = tl.load(w + rows, mask=rows < N, other=0.0)
        else:
            share = (rows < N).to(tl.float32)
        cos_sum += tl.sum(_cosine(r) * share[None, :], 1)
        sin_sum += tl.sum(_sine(r) * share[None, :], 1)
    freqs = start + tl.arange(0, BLOCK_A)
    at = part.to(tl.int64) * F + freqs
    tl.store(cos_part + at, cos_sum, mask=freqs < F)
    tl.store(sin_part + at, sin_sum, mask=freqs < F)


@triton.jit(do_not_specialize=["A", "C", "stretch"])
def _gradient_kernel(
    a,  # (A, D): rows that get a gradient
    c,  # (C, D): rows that it is a sum over
    shift,  # δ in turns, (A,) if SHIFTS_A, else (C,)
    scale,  # factor of each row of c, (C,), where SCALED
    grad,  # (parts, A, D) where WANTS_ROWS: Σ_c scale cos(θ + δ) c
    grad_sin,  # (parts, A) where WANTS_SIN: Σ_c scale sin(θ + δ)
    A,
    C,
    D,
    stretch,  # rows of c of one program
    SHIFTS_A: tl.constexpr,
    SCALED: tl.constexpr,
    WANTS_ROWS: tl.constexpr,
    WANTS_SIN: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    start = tl.program_id(0) * BLOCK_A
    part = tl.program_id(1)
    rows = start + tl.arange(0, BLOCK_A)
    if SHIFTS_A:
        delta_a = tl.load(shift + rows, mask=rows < A, other=0.0)
    total = tl.zeros((BLOCK_A, WIDTH), tl.float32)
    total_sin = tl.zeros((BLOCK_A,), tl.float32)
    for j in range(part * stretch, min(part * stretch + stretch, C), BLOCK_C):
        columns = j + tl.arange(0, BLOCK_C)
        turns = _turns(a, c, start, j, A, C, D, WIDTH, DEPTH, BLOCK_A, BLOCK_C, PRECISION)
        if SHIFTS_A:
            turns += delta_a[:, None]
        else:
            turns += tl.load(shift + columns, mask=columns < C, other=0.0)[None, :]
        r = _near_zero(turns)
        if SCALED:
            factor = tl.load(scale + columns, mask=columns < C, other=0.0)
        else:
            factor = (columns < C).to(tl.float32)
        if WANTS_ROWS:
            slope = _cosine(r) * factor[None, :]
            tile = _tile(c, j, C, 0, D, BLOCK_C, WIDTH)
            total = tl.dot(slope, tile, total, input_precision=PRECISION)
        if WANTS_SIN:
            total_sin += tl.sum(_sine(r) * factor[None, :], 1)
    at = part.to(tl.int64) * A + rows
    if WANTS_ROWS:
        features = tl.arange(0, WIDTH)[None, :]
        mask = (rows < A)[:, None] & (features < D)
        tl.store(grad + at[:, None] * D + features, total, mask=mask)
    if WANTS_SIN:
        tl.store(grad_sin + at, total_sin, mask=rows < A)


#: The kernels run in Triton's interpreter, on the CPU: `TRITON_INTERPRET=1` when it was imported.
INTERPRETED = not isinstance(_sums_kernel, triton.JITFunction)


# Rows of a, rows of c, warps. Rows of features that do not start at multiples of 16 bytes take more
# registers than others: without them, 4 warps would do for 128, here and in the sums.
_GRADIENT_TILES = {128: (64, 32, 8), 256: (32, 32, 8), 512: (32, 16, 8)}


def tiles(dim: int, gradient: bool) -> dict[str, int]:
    """Sizes of the tiles for rows of ``dim`` features, with the warps and stages of a program.

    As large as registers allow: next to nothing spills into memory, and less than 100 KiB of shared
    memory suits every device from compute capability 8.0 on (`tests/test_triton.py` compiles them).
    """
    width = max(16, triton.next_power_of_2(dim))  # `dot` takes no less than 16
    block_a, block_c, warps = 64, 64, 4 if width < 128 else 8
    if gradient:  # the sums are (BLOCK_A, WIDTH) more registers
        block_a, block_c, warps = _GRADIENT_TILES.get(width, (64, 32, 4))
    return {
        "WIDTH": width,
        "DEPTH": min(width, 32),
        "BLOCK_A": block_a,
        "BLOCK_C": block_c,
        "num_warps": warps,
        "num_stages": 2,
    }


def _parts(a: int, c: int, tile: dict[str, int], at_most: int | None = None) -> tuple[int, int]:
    """Into how many stretches ``c`` rows are cut beside ``a`` rows, and the length of one."""
    tiles_a, tiles_c = triton.cdiv(a, tile["BLOCK_A"]), triton.cdiv(c, tile["BLOCK_C"])
    steps = triton.cdiv(tiles_c, max(1, _PROGRAMS // tiles_a))
    if at_most is not None:
        steps = min(steps, at_most // tile["BLOCK_C"])
    return triton.cdiv(tiles_c, steps), steps * tile["BLOCK_C"]


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, PyTorch on that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def sums(x: Tensor, t: Tensor, w: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """``_phases.forward`` for one problem without groups: two ``(1, 1, F)``.

    ``precision`` is the products' ``input_precision``.
    """
    (_, N, D), F = x.shape, t.shape[1]
    tile = tiles(D, gradient=False)
    parts, stretch = _parts(F, N, tile, _SEQUENTIAL_ROWS)
    cos_part, sin_part = x.new_empty(parts, F), x.new_empty(parts, F)
    weights = cos_part if w is None else w.contiguous()  # a pointer not followed is not null either
    with _on(x):
        _sums_kernel[parts, triton.cdiv(F, tile["BLOCK_A"])](
            t.contiguous(),
            x.contiguous(),
            weights,
            cos_part,
            sin_part,
            F,
            N,
            D,
            stretch,
            WEIGHTED=w is not None,
            PRECISION=precision,
            **tile,
        )
    cos_sum, sin_sum = (p.sum(0, dtype=torch.float64) for p in (cos_part, sin_part))
    return cos_sum.to(x.dtype).view(1, 1, F), sin_sum.to(x.dtype).view(1, 1, F)


def gradients(
    grad_cos: Tensor,
    grad_sin: Tensor,
    x: Tensor,
    t: Tensor,
    w: Tensor | None,
    needs: tuple[bool, bool, bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``_phases.backward`` likewise: gradients for x, t and w, empty where not needed."""
    need_x, need_t, need_w = needs
    radius, delta = _phases.Angle().prepare(grad_cos.reshape(-1), grad_sin.reshape(-1))
    turns = delta / (2 * torch.pi)
    grad_x = grad_t = grad_w = x.new_empty(0)
    if need_x or need_w:
        grad_x, grad_w = _gradient(x, t, turns, radius, False, need_x, need_w, precision)
        if need_x and w is not None:
            grad_x.mul_(w.unsqueeze(2))
    if need_t:
        grad_t, _ = _gradient(t, x, turns, w, True, True, False, precision)
        grad_t.mul_(radius.unsqueeze(1))
    return grad_x, grad_t, grad_w


def _gradient(
    a: Tensor,
    c: Tensor,
    turns: Tensor,
    scale: Tensor | None,
    shifts_a: bool,
    wants_rows: bool,
    wants_sin: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``Σ_c scale cos(θ + δ) c``, (1, A, D), and ``Σ_c scale sin(θ + δ)``, (1, A)."""
    (_, A, D), C = a.shape, c.shape[1]
    tile = tiles(D, gradient=True)
    parts, stretch = _parts(A, C, tile)
    grad = a.new_empty(parts if wants_rows else 0, A, D)
    grad_sin = a.new_empty(parts if wants_sin else 0, A)
    with _on(a):
        _gradient_kernel[triton.cdiv(A, tile["BLOCK_A"]), parts](
            a.contiguous(),
            c.contiguous(),
            turns,
            turns if scale is None else scale.contiguous(),
            grad,
            grad_sin,
            A,
            C,
            D,
            stretch,
            SHIFTS_A=shifts_a,
            SCALED=scale is not None,
            WANTS_ROWS=wants_rows,
            WANTS_SIN=wants_sin,
            PRECISION=precision,
            **tile,
        )
    return _added(grad), _added(grad_sin)


def _added(parts: Tensor) -> Tensor:
    return parts.sum(0, keepdim=True) if len(parts) > 1 else parts
