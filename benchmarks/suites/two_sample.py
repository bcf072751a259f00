"""Suite `two-sample`: the tests against plain ways to do the same, by time.

`loop` forms cosines and sines once and then sums them again for every permutation, one at a time;
`kernel` does the same with the matrix of a Gaussian kernel (the quadratic MMD test). All use the
same number of permutations. Whether the tests hold their level and what they see is the matter of
suite `power`.

The second table is the test with its defaults at 10^5 samples of 64 features and 1000 permutations,
in a fresh process: wall time, processor time (other work on the machine disturbs it less), and the
peak of memory beyond the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.records import Records
from ncfd import ops

#: Samples on both sides together, features, permutations of the large case.
LARGE = {"n": 100_000, "D": 64, "permutations": 1000}


def run(device: torch.device, quick: bool, written: Records) -> None:
    try:
        from ncfd.two_sample import two_sample_test
    except ImportError as error:
        written.content["notes"] = [f"Not run: {error}."]
        return
    large: dict[str, Any] = {"n": 200, "D": 2, "permutations": 19} if quick else LARGE
    for method in ("permutation", "chi2"):
        specification = {"method": method, **large, "device": device.type}
        found = (
            probe(specification)
            if quick or device.type == "cuda"
            else measuring.in_fresh_process("two_sample", specification)
        )
        sizes = large if method == "permutation" else {**large, "permutations": 0}
        written.add("large", {"test": method, **sizes, **found})

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


def probe(specification: dict[str, Any]) -> dict[str, Any]:
    """Time and peak memory of the test with its defaults."""
    from ncfd.two_sample import two_sample_test

    device = torch.device(specification["device"])
    n, D = specification["n"], specification["D"]
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n // 2, D, generator=g).to(device) for _ in range(2))

    def test(rows: int) -> None:
        options = {"method": specification["method"], "seed": 0}
        two_sample_test(x[:rows], y[:rows], n_permutations=specification["permutations"], **options)

    test(64)  # loads the libraries
    peak = measuring.peak_memory(measuring.Contender(lambda: test(n // 2)), device)
    wall, processor = [], []
    for _ in range(3):
        measuring.synchronise(device)
        began, used = time.perf_counter(), time.process_time()
        test(n // 2)
        measuring.synchronise(device)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {
        "test_s": measuring.Quantiles.of(wall).median,
        "cpu_s": measuring.Quantiles.of(processor).median,
        "memory_mib": None if peak is None else peak / measuring.MIB,
        "repetitions": len(wall),
    }


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
