"""Suite `power`: how often each two-sample test sees a difference, and how often one that is not.

Every test gets the same samples. `power` is the share of simulations with p <= 0.05 where the two
laws differ, `size` the same where both are the standard normal law of that many features: a test
whose size exceeds 0.05 has not earned its power. The differences are tuned so that most powers are
neither 0 nor 1. Gaussian MMD (median heuristic) and energy distance come from `geomloss`; their
p-values are of as many permutations as ours. The other tests bring their own p-values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor

from benchmarks.records import Records
from ncfd import two_sample_test

LEVEL = 0.05
#: Samples on each side.
ROWS = 100
#: One less than a multiple of 1 / LEVEL, so that a permutation test can have exactly that level.
PERMUTATIONS = 99

Draw = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Shift:
    """A difference: what becomes of standard normal rows `(N, D)` on the second side."""

    kind: str
    D: int
    strength: str
    change: Draw


def _moved(by: float, features: int) -> Draw:
    def change(z: Tensor, _: torch.Generator) -> Tensor:
        return torch.cat([z[:, :features] + by, z[:, features:]], 1)

    return change


def _stretched(factor: float, features: int) -> Draw:
    def change(z: Tensor, _: torch.Generator) -> Tensor:
        return torch.cat([z[:, :features] * factor, z[:, features:]], 1)

    return change


def _two_modes(at: float) -> Draw:
    """Modes at ±`at` in every feature, narrow enough for mean 0 and variance 1."""

    def change(z: Tensor, g: torch.Generator) -> Tensor:
        sign = torch.randint(2, z.shape, generator=g, device=g.device).to(z) * 2 - 1
        return at * sign + math.sqrt(1 - at**2) * z

    return change


def _heavy_tails(degrees: int) -> Draw:
    """Student's t in every feature, scaled to variance 1."""

    def change(z: Tensor, g: torch.Generator) -> Tensor:
        square = torch.randn(*z.shape, degrees, generator=g).square().mean(-1)
        return z / square.sqrt() * math.sqrt((degrees - 2) / degrees)

    return change


def _correlated(rho: float) -> Draw:
    """Normal, every two features correlated by `rho`; the margins stay."""

    def change(z: Tensor, g: torch.Generator) -> Tensor:
        common = torch.randn(len(z), 1, generator=g)
        return math.sqrt(rho) * common + math.sqrt(1 - rho) * z

    return change


def _mirrored(share: float) -> Draw:
    """In this share of the rows the second feature is the first up to a random sign.

    The margins stay normal and the correlation 0.
    """

    def change(z: Tensor, g: torch.Generator) -> Tensor:
        sign = torch.randint(2, (len(z),), generator=g).to(z) * 2 - 1
        tied = torch.rand(len(z), generator=g) < share
        second = torch.where(tied, sign * z[:, 0], z[:, 1])
        return torch.stack([z[:, 0], second], 1)

    return change


SHIFTS = [
    Shift("location", 1, "mean 0.35", _moved(0.35, 1)),
    Shift("scale", 1, "standard deviation 1.4", _stretched(1.4, 1)),
    Shift("shape, two modes", 1, "modes at ±0.87", _two_modes(0.87)),
    Shift("shape, heavy tails", 1, "Student's t, 3 degrees", _heavy_tails(3)),
    Shift("dependence, correlation", 2, "correlation 0.6", _correlated(0.6)),
    Shift("dependence without correlation", 2, "tied rows 0.7", _mirrored(0.7)),
    Shift("location, all features", 8, "mean 0.2", _moved(0.2, 8)),
    Shift("scale, all features", 8, "standard deviation 1.2", _stretched(1.2, 8)),
    Shift("shape, two modes", 8, "modes at ±0.95", _two_modes(0.95)),
    Shift("dependence, correlation", 8, "correlation 0.3", _correlated(0.3)),
]


def tests(D: int) -> dict[str, Callable[[Tensor, Tensor, int], float]]:
    """p-values by the name of the test; the last argument is a seed."""
    ours = {
        "ncfd, permutation": {"n_permutations": PERMUTATIONS},
        "ncfd, chi2": {"method": "chi2"},
        "ncfd, learned": {"n_permutations": PERMUTATIONS, "learn_frequencies": True},
    }
    found: dict[str, Callable[[Tensor, Tensor, int], float]] = {
        name: lambda x, y, seed, options=options: two_sample_test(x, y, seed=seed, **options).pvalue
        for name, options in ours.items()
    }
    found |= {
        "Gaussian MMD": lambda x, y, seed: permuted(x, y, seed, "gaussian"),
        "energy distance": lambda x, y, seed: permuted(x, y, seed, "energy"),
    }
    if D == 1:
        own = {
            "Epps-Singleton": scipy.stats.epps_singleton_2samp,
            "Kolmogorov-Smirnov": scipy.stats.ks_2samp,
            "Cramér-von Mises": scipy.stats.cramervonmises_2samp,
        }
        found |= {
            name: lambda x, y, _, test=test: float(
                test(x.flatten().cpu().numpy(), y.flatten().cpu().numpy()).pvalue
            )
            for name, test in own.items()
        }
    return found


def permuted(x: Tensor, y: Tensor, seed: int, distance: str) -> float:
    """Permutation p-value of a distance of `geomloss`, all permutations as one batch."""
    from geomloss import SamplesLoss

    z = torch.cat([x, y])
    # k(a, b) = exp(-|a - b|² / 2 median²), the median over all pairs of both sets.
    options = {"blur": torch.pdist(z).median().item()} if distance == "gaussian" else {}
    loss = SamplesLoss(distance, backend="tensorized", **options)
    g = torch.Generator().manual_seed(seed)
    orders = [torch.arange(len(z))]
    orders += [torch.randperm(len(z), generator=g) for _ in range(PERMUTATIONS)]
    batch = z[torch.stack(orders).to(z.device)]  # (1 + B, N + M, D)
    values = loss(batch[:, : len(x)].contiguous(), batch[:, len(x) :].contiguous())
    # A permutation that only repeats the two sides differs by rounding.
    reached = values[1:] >= values[0] - 1e-6 * values[0].abs()
    return (1 + int(reached.sum())) / (1 + PERMUTATIONS)


def run(device: torch.device, quick: bool, written: Records) -> None:
    R, R_null = (2, 2) if quick else (200, 400)
    shifts = SHIFTS[::8] if quick else SHIFTS
    written.content["notes"] = [
        f"{ROWS} samples on each side, {R} simulations of each difference and {R_null} of none, "
        f"level {LEVEL}, {PERMUTATIONS} permutations (where p-values are of permutations). "
        "`power_error` and `size_error` are Monte Carlo standard errors; at the level itself that "
        f"of a size is {_error(LEVEL, R_null):.3f}. The first side is standard "
        "normal. `cpu_s` is processor time of all simulations."
    ]
    sizes: dict[int, dict[str, float]] = {}
    for D in sorted({shift.D for shift in shifts}):
        null = Shift("none", D, "-", lambda z, _: z)
        sizes[D] = {}
        for name, (rate, seconds) in rejections(null, R_null, device).items():
            sizes[D][name] = rate
            row = {"D": D, "test": name, "simulations": R_null}
            error = _error(rate, R_null)
            written.add("size", {**row, "size": rate, "size_error": error} | seconds)
    for shift in shifts:
        for name, (rate, _) in rejections(shift, R, device).items():
            row = {"shift": shift.kind, "D": shift.D, "strength": shift.strength, "test": name}
            row |= {"simulations": R}
            found = {"power": rate, "power_error": _error(rate, R)}
            written.add("power", {**row, **found, "size": sizes[shift.D][name]})


def rejections(
    shift: Shift, R: int, device: torch.device
) -> dict[str, tuple[float, dict[str, float]]]:
    """By test: the share of R simulations with p <= LEVEL, and the processor time they took."""
    contenders = tests(shift.D)
    hits = dict.fromkeys(contenders, 0)
    seconds = dict.fromkeys(contenders, 0.0)
    # One stream for all: generators with neighbouring seeds need not be independent.
    g = torch.Generator().manual_seed(0)
    for r in range(R):
        x, y = (side.to(device) for side in samples(shift, g))
        for name, test in contenders.items():
            began = time.process_time()
            hits[name] += test(x, y, r) <= LEVEL + 1e-9
            seconds[name] += time.process_time() - began
    return {name: (hits[name] / R, {"cpu_s": seconds[name]}) for name in contenders}


def samples(shift: Shift, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x, z = (torch.randn(ROWS, shift.D, generator=g) for _ in range(2))
    return x, shift.change(z, g)


def _error(rate: float, R: int) -> float:
    """Standard error of a share, kept off 0 where all simulations agree."""
    inside = min(max(rate, 0.5 / R), 1 - 0.5 / R)
    return math.sqrt(inside * (1 - inside) / R)
