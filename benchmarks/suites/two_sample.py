"""Suite `two-sample`: the tests against plain ways to do the same, by time.

`loop` forms cosines and sines once and then sums them again for every permutation, one at a time;
`kernel` does the same with the matrix of a Gaussian kernel (the quadratic MMD test). All use the
same number of permutations. Whether the tests hold their level is a matter for the tests of the
package, not for this suite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.records import Records
from ncfd import ops


def run(device: torch.device, quick: bool, written: Records) -> None:
    try:
        from ncfd.two_sample import two_sample_test
    except ImportError as error:
        written.content["notes"] = [f"Not run: {error}."]
        return
    B = 19 if quick else 999
    F = 32 if quick else 384
    sizes = [(50, 2)] if quick else [(200, 1), (500, 16), (2000, 16), (2000, 256), (10_000, 16)]
    for n, D in sizes:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(n, D, generator=g).to(device)
        y = (torch.randn(n, D, generator=g) + 0.1).to(device)
        t = torch.randn(F, D, generator=g).to(device) / D**0.5
        contenders: dict[str, Callable[[], object]] = {
            "permutation": lambda x=x, y=y, t=t: two_sample_test(
                x, y, frequencies=t, n_permutations=B, seed=0
            ),
            "permutation, defaults": lambda x=x, y=y: two_sample_test(
                x, y, n_permutations=B, seed=0
            ),
            "chi2": lambda x=x, y=y: two_sample_test(x, y, method="chi2", seed=0),
        }
        if n <= 2000:  # 8 GB of reads for the loop beyond, and (2n)² kernel values
            contenders["loop"] = lambda x=x, y=y, t=t: loop_test(x, y, t, B)
            contenders["kernel"] = lambda x=x, y=y: kernel_test(x, y, B)
        if D == 1 and device.type == "cpu":
            contenders |= _scipy(x, y)
        rounds = measuring.interleave(
            {name: measuring.Contender(function) for name, function in contenders.items()},
            device,
            seconds=0.05 if quick else 8.0,
            at_least=3,
            at_most=100,
            warm_up=1,
        )
        for name, measured in rounds.items():
            times = measuring.Quantiles.of(measured.forward)
            written.add(
                "times",
                {
                    "test": name,
                    "n": n,
                    "D": D,
                    "permutations": 0 if name in ("chi2", "scipy Epps-Singleton") else B,
                    "test_ms": 1e3 * times.median,
                    "test_20_ms": 1e3 * times.low,
                    "test_80_ms": 1e3 * times.high,
                    "repetitions": times.count,
                    "over_permutation": measuring.ratio(measured, rounds["permutation"]).median,
                },
            )


def loop_test(x: Tensor, y: Tensor, t: Tensor, B: int) -> float:
    """p-value of the squared discrepancy, one permutation after the other."""
    cos, sin = ops.features(torch.cat([x, y]), t)
    features = torch.cat([cos, sin], 1)
    total = features.sum(0)
    n, m = len(x) + len(y), len(x)

    def statistic(rows: Tensor) -> Tensor:
        one = features[rows].sum(0)
        return (one / m - (total - one) / (n - m)).square().mean()

    observed = statistic(torch.arange(m, device=x.device))
    g = torch.Generator().manual_seed(0)
    larger = torch.zeros((), device=x.device)
    for _ in range(B):
        larger += statistic(torch.randperm(n, generator=g)[:m].to(x.device)) >= observed
    return (1 + larger.item()) / (1 + B)


def kernel_test(x: Tensor, y: Tensor, B: int) -> float:
    """p-value of the quadratic MMD, all permutations in one product with the kernel matrix."""
    z = torch.cat([x, y])
    n, m = len(z), len(x)
    square = torch.cdist(z, z).square()
    kernel = torch.exp(-square / (2 * square.median()))
    g = torch.Generator().manual_seed(0)
    weights = torch.full((B + 1, n), -1.0 / (n - m))
    weights[0, :m] = 1.0 / m
    for row in weights[1:]:
        row[torch.randperm(n, generator=g)[:m]] = 1.0 / m
    weights = weights.to(z)
    values = ((weights @ kernel) * weights).sum(1)
    return (values[1:] >= values[0]).double().mean().item()


def _scipy(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    try:
        from scipy.stats import epps_singleton_2samp
    except ImportError:
        return {}
    a, b = x.flatten().numpy(), y.flatten().numpy()
    return {"scipy Epps-Singleton": lambda: epps_singleton_2samp(a, b)}
