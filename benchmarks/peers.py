"""Peers: other ways to compute the same discrepancy, and other discrepancies.

The released form is written from the description of the published code, not from the code: the
phases of each side formed once for the cosine and once for the sine, moduli by plain roots, the
phase term as `2 (|φx||φy| - Re φx conj φy)` clamped at 1e-12, root, mean, plain autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

import ncfd
from benchmarks.cases import Tensors
from benchmarks.measuring import Contender, differentiated
from ncfd.ops._fused import Products

# ------------------------------------------------------------------------------------------------
# The discrepancy itself
# ------------------------------------------------------------------------------------------------


def released_form(x: Tensor, y: Tensor, t: Tensor, alpha: float = 0.5) -> Tensor:
    """The published loss without its factor 300."""
    x_re, x_im = torch.cos(x @ t.T).mean(0), torch.sin(x @ t.T).mean(0)
    y_re, y_im = torch.cos(y @ t.T).mean(0), torch.sin(y @ t.T).mean(0)
    x_mod = torch.sqrt(x_re**2 + x_im**2)
    y_mod = torch.sqrt(y_re**2 + y_im**2)
    amplitude = (x_mod - y_mod) ** 2
    phase = 2 * (x_mod * y_mod - (x_re * y_re + x_im * y_im))
    return torch.sqrt(alpha * amplitude + (1 - alpha) * phase.clamp(min=1e-12)).mean()


def products(data: Tensors) -> Contender:
    """The matrix products that no method can do without, with their results thrown away."""
    x, y, t = data.x, data.y.detach(), data.t.detach()
    N, M = len(x), len(y)
    theta_x, theta_y = x.new_empty(N, len(t)), x.new_empty(M, len(t))
    grad_y, grad_t = torch.empty_like(y), torch.empty_like(t)

    def forward() -> None:
        torch.mm(x, t.T, out=theta_x)
        torch.mm(y, t.T, out=theta_y)

    def backward(_: None) -> None:
        torch.mm(theta_y, t, out=grad_y)
        if data.t.requires_grad:
            torch.mm(theta_x.T, x, out=grad_t)
            torch.addmm(grad_t, theta_y.T, y, out=grad_t)

    return Contender(forward, backward)


#: Our loss by the Triton kernels, with each way to form their products.
FUSED: dict[str, Products] = {f"ncfd, Triton {name}": name for name in get_args(Products)}


def fused() -> list[str]:
    """The names in `FUSED` if the kernels run here, else none."""
    try:
        ncfd.ops.use_triton()
    except RuntimeError:
        return []
    ncfd.ops.use_triton(None)
    return list(FUSED)


def discrepancy_contender(name: str, data: Tensors) -> Contender:
    """`ncfd`, one of `FUSED`, `released` or a closed form on the tensors of a problem."""
    if name in FUSED:
        eager = discrepancy_contender("ncfd", data)

        def clear() -> None:
            eager.clear()
            ncfd.ops.use_triton(None)

        return replace(eager, clear=clear, prepare=lambda: ncfd.ops.use_triton(FUSED[name]))
    functions: dict[str, Callable[[], Tensor]] = {
        "ncfd": lambda: ncfd.functional.ncfd_loss(data.x, data.y, data.t),
        "released": lambda: released_form(data.x, data.y, data.t),
        "closed form": lambda: ncfd.functional.gaussian_ncfd(data.x, data.y, data.scale),
        # What the synthetic samples need, and as many real pairs as tell the scale where to go.
        "closed form, few real pairs": lambda: ncfd.functional.gaussian_ncfd(
            data.x, data.y, data.scale, real_rows=256 if data.scale.requires_grad else 0
        ),
    }
    return differentiated(functions[name], data.leaves)


# ------------------------------------------------------------------------------------------------
# Others
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A discrepancy of x and y, what it computes, and its exact value on the same samples.

    `exact` works in float64 and may take its time; None where it would take too long.
    """

    name: str
    computes: str
    cost: str
    function: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor], float | None]
    exact_is: str


def rbf_mmd(x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """Half the squared maximum mean discrepancy, all pairs at once."""

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        square = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return torch.exp(-0.5 * scale**2 * square.clamp(min=0)).mean()

    return 0.5 * (mean_kernel(x, x) + mean_kernel(y, y)) - mean_kernel(x, y)


def mmd_of_blocks(x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """The same averaged over scales, squared norms formed once and three matrices of pairs."""
    x_square, y_square = x.square().sum(1), y.square().sum(1)
    factors = [0.5 * s**2 for s in scales.flatten().tolist()]

    def mean_kernel(a: Tensor, b: Tensor, a_square: Tensor, b_square: Tensor) -> Tensor:
        square = a_square[:, None] + b_square - 2 * a @ b.T
        kernel = sum((torch.exp(-f * square) for f in factors), start=x.new_zeros(()))
        return kernel.mean() / len(factors)

    own = mean_kernel(x, x, x_square, x_square) + mean_kernel(y, y, y_square, y_square)
    return 0.5 * own - mean_kernel(x, y, x_square, y_square)


def mmd_of_all(x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """The same with one matrix of all rows, as kernels of several widths are mostly written."""
    rows, N = torch.cat((x, y)), len(x)
    product = rows @ rows.T
    norms = product.diagonal()
    square = norms[:, None] + norms - 2 * product
    factors = [0.5 * s**2 for s in scales.flatten().tolist()]
    kernel = sum((torch.exp(-f * square) for f in factors), start=x.new_zeros(())) / len(factors)
    return 0.5 * (kernel[:N, :N].mean() + kernel[N:, N:].mean()) - kernel[:N, N:].mean()


def mmd_of_cdist(x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """The same from ``torch.cdist``."""
    factors = [0.5 * s**2 for s in scales.flatten().tolist()]

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        square = torch.cdist(a, b).square()
        kernel = sum((torch.exp(-f * square) for f in factors), start=x.new_zeros(()))
        return kernel.mean() / len(factors)

    return 0.5 * (mean_kernel(x, x) + mean_kernel(y, y)) - mean_kernel(x, y)


#: Mixtures of Gaussian kernels of several widths, ours and three ways to write it by hand.
MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gaussian_ncfd": ncfd.functional.gaussian_ncfd,
    "plain, three matrices": mmd_of_blocks,
    "plain, one matrix": mmd_of_all,
    "plain, torch.cdist": mmd_of_cdist,
}


def exact_rbf_mmd(x: Tensor, y: Tensor, scale: float = 1.0) -> float:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (scale * _distances(a, b)) ** 2).mean()

    x, y = x.double(), y.double()
    return (0.5 * (mean_kernel(x, x) + mean_kernel(y, y)) - mean_kernel(x, y)).item()


def exact_energy(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    own = 0.5 * (_distances(x, x).mean() + _distances(y, y).mean())
    return (_distances(x, y).mean() - own).item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def epps_pulley(y: Tensor, directions: Tensor, knots: int = 17, end: float = 3.0) -> Tensor:
    """Mean over directions of `∫ |φ_y(s) - e^{-s²/2}|² N(s; 0, 1) ds` by the trapezoid rule.

    The integrand is even, so the knots cover half of the line.
    """
    s = torch.linspace(0, end, knots, device=y.device, dtype=y.dtype)
    weights = torch.exp(-0.5 * s**2) / math.sqrt(2 * math.pi) * (2 * end / (knots - 1))
    weights[0] *= 0.5
    weights[-1] *= 0.5
    phase = (y @ directions.T).unsqueeze(2) * s  # (M, directions, knots)
    re, im = torch.cos(phase).mean(0), torch.sin(phase).mean(0)
    gap = (re - torch.exp(-0.5 * s**2)) ** 2 + im**2
    return (gap @ weights).mean()


def exact_epps_pulley(y: Tensor, directions: Tensor) -> float:
    """The integral in closed form: pairs, single samples, and a constant."""
    projected = (y.double() @ directions.double().T).T  # (directions, M)
    total = 0.0
    for z in projected:
        pairs = torch.exp(-0.5 * (z[:, None] - z).square()).mean()
        single = torch.exp(-0.25 * z.square()).mean() / math.sqrt(2)
        total += (pairs - 2 * single).item()
    return total / len(projected) + 1 / math.sqrt(3)


def directions(count: int, D: int, device: torch.device) -> Tensor:
    """Random unit vectors, (count, D)."""
    g = torch.Generator().manual_seed(7)
    return torch.nn.functional.normalize(torch.randn(count, D, generator=g), dim=1).to(device)


def all_peers(D: int, F: int, device: torch.device) -> tuple[list[Peer], list[str]]:
    """The peers that are installed, and the names of the libraries that are not."""
    g = torch.Generator().manual_seed(11)
    t = torch.randn(F, D, generator=g).to(device)
    u = directions(256, D, device)

    def exact_root(x: Tensor, y: Tensor) -> float:
        return ncfd.functional.ncfd_loss(x.double(), y.double(), t.double()).item()

    def exact_square(x: Tensor, y: Tensor) -> float:
        return exact_rbf_mmd(x, y)

    found = [
        Peer(
            "ncfd_loss",
            "mean over frequencies of the root of ½|φx - φy|²",
            "N F D",
            lambda x, y: ncfd.functional.ncfd_loss(x, y, t),
            exact_root,
            "the same frequencies in float64",
        ),
        Peer(
            "released form",
            "the same, without care for rounding",
            "2 N F D",
            lambda x, y: released_form(x, y, t),
            exact_root,
            "the same frequencies in float64, without the clamp",
        ),
        Peer(
            "ncfd_loss, squared",
            "the mean of ½|φx - φy|² over sampled frequencies",
            "N F D",
            lambda x, y: ncfd.functional.ncfd_loss(x, y, t, squared=True),
            exact_square,
            "all pairs, infinitely many frequencies",
        ),
        Peer(
            "gaussian_ncfd",
            "the same with infinitely many Gaussian frequencies",
            "N² D",
            lambda x, y: ncfd.functional.gaussian_ncfd(x, y),
            exact_square,
            "all pairs in float64",
        ),
        Peer(
            "RBF-MMD, all pairs",
            "the same number, with the kernel matrices whole",
            "N² D",
            rbf_mmd,
            exact_square,
            "all pairs in float64",
        ),
        Peer(
            "sliced Epps-Pulley",
            "y against the standard normal law along 256 directions, 17 knots",
            "N S (D + K)",
            lambda _, y: epps_pulley(y, u),
            lambda _, y: exact_epps_pulley(y, u),
            "the integral in closed form, same directions",
        ),
    ]
    missing = []
    try:
        from geomloss import SamplesLoss
    except ImportError:
        missing.append("geomloss")
    else:
        sinkhorn = {"p": 2, "blur": 0.05}
        losses = {
            "energy": SamplesLoss("energy", backend="tensorized"),
            "gaussian": SamplesLoss("gaussian", blur=1.0, backend="tensorized"),
            "sinkhorn": SamplesLoss("sinkhorn", backend="tensorized", **sinkhorn),
        }
        found += [
            Peer(
                "geomloss energy",
                "energy distance",
                "N² D",
                losses["energy"],
                exact_energy,
                "all pairs in float64",
            ),
            Peer(
                "geomloss gaussian",
                "half the squared MMD of the Gaussian kernel",
                "N² D",
                losses["gaussian"],
                exact_square,
                "all pairs in float64",
            ),
            Peer(
                "geomloss sinkhorn",
                "debiased entropic transport cost ½|x - y|², blur 0.05",
                "N² (D + iterations)",
                losses["sinkhorn"],
                _exact_transport,
                "the exact transport cost, without entropy",
            ),
        ]
    try:
        import ot
    except ImportError:
        missing.append("pot")
    else:
        found.append(
            Peer(
                "POT sliced Wasserstein",
                "sliced 2-Wasserstein distance, 256 directions",
                "S N (D + log N)",
                lambda x, y: ot.sliced_wasserstein_distance(
                    x, y, n_projections=256, p=2, projections=u.T
                ),
                lambda x, y: _exact_sliced(x, y),
                "4096 directions in float64",
            )
        )
    return found, missing


def _exact_transport(x: Tensor, y: Tensor) -> float | None:
    try:
        import ot
    except ImportError:
        return None
    if len(x) > 2500:  # cubic in the number of samples
        return None
    cost = 0.5 * _distances(x.double(), y.double()).square().cpu().numpy()
    return float(ot.emd2([], [], cost, numItermax=1_000_000))


def _exact_sliced(x: Tensor, y: Tensor) -> float:
    """Sorted projections, the definition for equally many samples."""
    x, y = x.double(), y.double()
    total, count = 0.0, 0
    for u in directions(4096, x.shape[1], x.device).double().split(512):
        gap = (x @ u.T).sort(0).values - (y @ u.T).sort(0).values
        total += gap.square().mean(0).sum().item()
        count += len(u)
    return math.sqrt(total / count)
