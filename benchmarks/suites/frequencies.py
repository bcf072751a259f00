"""Suite `frequencies`: variance of the loss and of its gradient by way of drawing frequencies.

The squared loss under Gaussian frequencies has an exact value (all pairs), so each draw's error is
known: `loss` is the relative root mean square error of the loss over draws, `gradient` that of its
gradient for the synthetic samples. The root loss has no exact value: `root` is its relative spread.
The second table asks how many frequencies each method needs for what 1024 random ones give.

Then the cost: processor time of a draw on one thread, and of the phases of fixed structured
frequencies by the fast transform (two small products for each Hadamard factor) beside the dense
product, forward only. Milliseconds, so that they belong to the machine, unlike the errors.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ncfd
from benchmarks import cases, measuring
from benchmarks.records import Records
from ncfd.frequencies._draws import METHODS, hadamard

#: What the methods are compared with: this many random frequencies.
BASE = 1024


def run(device: torch.device, quick: bool, written: Records) -> None:
    N, M = (32, 8) if quick else (512, 40)
    draws = 4 if quick else 64
    grid = cases.NUM_FREQUENCIES[:3] if quick else cases.NUM_FREQUENCIES
    written.content["notes"] = [
        f"{draws} draws of frequencies, N={N}, M={M}, features of length 1. An error estimated "
        f"from {draws} draws is itself uncertain by about {100 / math.sqrt(2 * draws):.0f} %."
    ]
    for case in cases.FREQUENCIES[::4] if quick else cases.FREQUENCIES:
        data = cases.make(cases.Problem(N, M, case.D, 1, learned=False), device)
        exact = ncfd.functional.gaussian_ncfd(data.x.double(), data.y.double(), case.scale)
        (slope,) = torch.autograd.grad(exact, data.y)
        errors: dict[str, dict[int, dict[str, float]]] = {}
        for method in METHODS:
            errors[method] = {}
            for F in grid:
                found = _errors(data, case, method, F, draws, exact.item(), slope.float())
                errors[method][F] = found
                where: dict[str, Any] = {"D": case.D, "scale": f"{case.scale:g}", "method": method}
                written.add("error", {**where, "F": F, **found})
        for method in METHODS:
            if method == "random":
                continue
            row: dict[str, Any] = {"D": case.D, "scale": f"{case.scale:g}", "method": method}
            for what in ("loss", "gradient", "root"):
                row[f"{what}_F"] = equal_error(errors["random"], errors[method], what)
            written.add(
                f"F with the error of {BASE} random frequencies", {**row, "why": case.reason}
            )
    if device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _costs(quick, written)
        finally:
            torch.set_num_threads(threads)


def _costs(quick: bool, written: Records) -> None:
    repetitions = 2 if quick else 7
    for D in (32,) if quick else (128, 512, 2048):
        for F in (64,) if quick else (1024, 4096):
            g = torch.Generator().manual_seed(2)
            methods = ("random", "orthogonal", "structured")
            laws = {m: ncfd.GaussianFrequencies(D, F, method=m) for m in methods}
            draws = {m: functools.partial(law, g) for m, law in laws.items()}
            found = _processor_times(draws, repetitions)
            written.add("draw, ms", {"D": D, "F": F, **{f"{m}_ms": found[m] for m in methods}})
            found = _processor_times(_products(1024, D, F), repetitions)
            row: dict[str, Any] = {"N": 1024, "D": D, "F": F}
            written.add("phases of fixed frequencies, ms", row | found)


def _processor_times(
    contenders: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, float]:
    """Medians in milliseconds, the contenders in turns, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions + 1):
        for name, function in contenders.items():
            began = time.process_time()
            function()
            times[name].append(1e3 * (time.process_time() - began))
    return {name: measuring.Quantiles.of(v[1:]).median for name, v in times.items()}


def _products(N: int, D: int, F: int) -> dict[str, Callable[[], object]]:
    """Phases ``(N, F)`` of ``H S H S H S x`` (D a power of two), fast, and of a dense ``t``."""
    g = torch.Generator().manual_seed(5)
    x, t = torch.randn(N, D, generator=g), torch.randn(F, D, generator=g)
    blocks, power = -(-F // D), D.bit_length() - 1
    left, right = (hadamard(k, x) for k in (power // 2, power - power // 2))
    signs = 2.0 * torch.randint(2, (3, blocks, 1, D), generator=g) - 1
    lengths, out = torch.rand(F, generator=g), x.new_empty(N, F)

    def transform(v: Tensor) -> Tensor:
        return (left @ (v.reshape(-1, len(left), len(right)) @ right)).view(v.shape)

    def fast() -> Tensor:
        v = x.unsqueeze(0)
        for s in signs:
            v = transform(v * s)  # (blocks, N, D)
        return torch.mul(v.transpose(0, 1).reshape(N, -1)[:, :F], lengths, out=out)

    return {"dense_ms": lambda: torch.mm(x, t.T, out=out), "fast_ms": fast}


def _errors(
    data: cases.Tensors,
    case: cases.FrequencyCase,
    method: str,
    F: int,
    draws: int,
    exact: float,
    slope: Tensor,
) -> dict[str, float]:
    g = torch.Generator().manual_seed(1)
    law = ncfd.GaussianFrequencies(case.D, F, scale=case.scale, method=method).to(data.x.device)
    values, gradients, roots = [], [], []
    for _ in range(draws):
        t = law(generator=g)
        value = ncfd.functional.ncfd_loss(data.x, data.y, t, squared=True)
        (gradient,) = torch.autograd.grad(value, data.y)
        values.append(value.item())
        gradients.append(((gradient - slope).norm() / slope.norm()).item())
        with torch.no_grad():
            roots.append(ncfd.functional.ncfd_loss(data.x, data.y, t).item())
    value_errors = torch.tensor(values, dtype=torch.float64) / exact - 1
    root = torch.tensor(roots, dtype=torch.float64)
    return {
        "loss": value_errors.square().mean().sqrt().item(),
        "gradient": torch.tensor(gradients, dtype=torch.float64).square().mean().sqrt().item(),
        "root": (root.std() / root.mean()).item(),
    }


def equal_error(
    random: dict[int, dict[str, float]], other: dict[int, dict[str, float]], what: str
) -> float:
    """The F at which `other` has the error of BASE random frequencies; between points, power law.

    Random errors fall as 1/√F exactly, so all points of that curve tell its height. Below the
    smallest F of the grid the answer is that F; beyond the largest the curve goes on as 1/√F.
    """
    heights = [math.log(e[what]) + 0.5 * math.log(F) for F, e in random.items()]
    wanted = sum(heights) / len(heights) - 0.5 * math.log(BASE)
    points = [(math.log(F), math.log(max(e[what], 1e-300))) for F, e in sorted(other.items())]
    if points[0][1] <= wanted:
        return math.exp(points[0][0])
    for (f0, e0), (f1, e1) in itertools.pairwise(points):
        if e1 <= wanted:
            return math.exp(f0 + (f1 - f0) * (e0 - wanted) / (e0 - e1))
    # Beyond the grid the error keeps falling as 1/√F.
    return math.exp(points[-1][0] + 2 * (points[-1][1] - wanted))
