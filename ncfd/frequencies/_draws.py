"""Random numbers for the frequencies: standard normal rows, drawn in four ways.

Letters: D features, F frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncfd._devices import widest_float

METHODS = ("random", "orthogonal", "structured", "sobol")

#: The most dimensions that PyTorch's Sobol sequence covers.
SOBOL_DIMS = torch.quasirandom.SobolEngine.MAXDIM

#: Structured blocks have at least 2 to this power columns: entries add as many signs, and below
#: 64 of them are seen not to be normal.
_LEAST_POWER = 6


def draw(
    kind: str,
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Normal, uniform or exponential noise for the device and dtype of ``like``.

    A CPU generator draws on the CPU and moves, so that one seed gives one stream on all devices.
    """
    device = like.device if generator is None else generator.device
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    noise = torch.empty(shape, device=device, dtype=dtype)
    if kind == "normal":
        noise.normal_(generator=generator)
    elif kind == "uniform":
        noise.uniform_(generator=generator)
    else:
        noise.exponential_(generator=generator)
    return noise.to(like.device)


def normal(
    num_frequencies: int,
    dim: int,
    method: str,
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """``(F, D)`` rows, each ``N(0, I)``: exactly, but for ``"structured"``."""
    if method == "random":
        return draw("normal", (num_frequencies, dim), like, generator)
    if method == "sobol":
        return normal_quantile(sobol(num_frequencies, dim, like, generator))
    if method == "structured":
        return _structured(num_frequencies, dim, like, generator)
    blocks = -(-num_frequencies // dim)
    noise = draw("normal", (blocks, dim, dim), like, generator)
    q, r = torch.linalg.qr(noise)
    # Signs of R's diagonal make Q Haar-distributed; without them QR favours one sign.
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2)).unsqueeze(1)
    # Lengths of independent normal rows: orthogonality alone would give another kernel.
    lengths = draw("normal", (blocks, dim, dim), like, generator).norm(dim=2, keepdim=True)
    rows: Tensor = (q * lengths).reshape(blocks * dim, dim)
    return rows[:num_frequencies]


def spread(count: int, deviation: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(count, 1)`` factors ``exp(deviation · z)``, z normal, one from each of ``count`` strata.

    Together they are the log-normal law: a mean over them has its expectation, whatever is
    averaged (fixed quantiles would cut its tails off). As each stratum is met once, the mean of
    something smooth varies far less than over independent draws. In rising order.
    """
    uniform = draw("uniform", (count, 1), like, generator)
    strata = torch.arange(count, device=uniform.device, dtype=uniform.dtype).unsqueeze(1)
    return torch.exp(deviation * normal_quantile((strata + uniform) / count))


def _structured(
    num_frequencies: int, dim: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """``(F, D)`` rows from blocks of ``H S H S H R``, S random signs, R random turns of pairs.

    H is a Hadamard matrix: nothing is factorised. The size n of a block is a power of two, at
    least D: where it is more, columns are cut off, and rows are orthogonal only roughly.
    """
    power = max(_LEAST_POWER, (dim - 1).bit_length())
    size = 2**power
    left, right = (hadamard(k, like) for k in (power // 2, power - power // 2))
    blocks = -(-num_frequencies // size)
    rows = -(-num_frequencies // blocks)  # of each block
    matrix = torch.kron(left, right)[:rows].expand(blocks, rows, size)
    # Whole numbers up to here, so that devices agree to the bit whatever their products
    # do, TF32 too (11 bits hold all but a few): only half precision has to be kept away.
    with torch.autocast(like.device.type, enabled=False):
        for turn in range(3):
            if turn > 0:  # times H, which is a Kronecker product: two small products
                cut = matrix.reshape(-1, len(left), len(right)) @ right
                matrix = (left @ cut).reshape(blocks, rows, size)
            if turn < 2:
                uniform = draw("uniform", (blocks, 1, size), like, generator)
                matrix = matrix * torch.where(uniform < 0.5, -1.0, 1.0).to(matrix)
    # Entries so far lie on a coarse lattice: turn them two by two.
    angle = 2 * math.pi * draw("uniform", (blocks, 1, size // 2), like, generator)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = matrix[..., 0::2], matrix[..., 1::2]
    matrix = torch.cat([first * cos - second * sin, first * sin + second * cos], 2)
    # Lengths of independent normal rows: squared, twice a gamma variable of shape n / 2.
    device = like.device if generator is None else generator.device
    half = torch.full((blocks, rows, 1), size / 2, dtype=widest_float(device), device=device)
    lengths = torch.sqrt(2 * torch._standard_gamma(half, generator=generator)) * size**-1.5
    scaled: Tensor = matrix * lengths.to(matrix)
    return scaled.reshape(-1, size)[:num_frequencies, :dim]


def hadamard(power: int, like: Tensor) -> Tensor:
    """The Hadamard matrix of ``2 ** power`` rows, entries ±1."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    matrix = torch.ones(1, 1, dtype=dtype, device=like.device)
    for _ in range(power):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def sobol(
    num_frequencies: int, dims: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Scrambled Sobol points in (0, 1), ``(F, dims)``, freshly scrambled at each call."""
    device = like.device if generator is None else generator.device
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=device))
    engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=seed)  # type: ignore[no-untyped-call]  # torch's own
    points = engine.draw(num_frequencies, dtype=torch.float64)
    # Points lie on a 2⁻³⁰ lattice that includes 0: take the centres of its cells.
    points = points.clamp(0, 1 - 2.0**-30) + 2.0**-31
    return points.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def normal_quantile(points: Tensor) -> Tensor:
    # float32 rounds the last cell up to 1, whose quantile is infinite.
    quantile: Tensor = torch.special.ndtri(points.clamp(1e-9, 1 - 6e-8))
    return quantile


def gamma_quantile(p: Tensor, shape: float) -> Tensor:
    """Inverse of the regularised lower incomplete gamma function, by bisection in float64."""
    a = torch.full_like(p, shape)
    low, high = torch.full_like(p, -80.0), torch.full_like(p, math.log(shape + 50.0) + 3.0)
    for _ in range(80):  # halves an interval of 90 in log space down to 1e-22
        middle = 0.5 * (low + high)
        below = torch.special.gammainc(a, torch.exp(middle)) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.exp(0.5 * (low + high))
