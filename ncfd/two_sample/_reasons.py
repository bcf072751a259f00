"""Where the two sets differ: what the result says besides its p-value.

Letters: N and M samples, D features, F frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncfd import ops
from ncfd.two_sample._arguments import shuffled
from ncfd.two_sample._sums import Phi, unbiased

#: Levels at which the result tells the statistic's quantiles under the hypothesis.
QUANTILES = (0.5, 0.9, 0.95, 0.99)
_WITNESS_ROWS = 1000


@dataclass
class Finding:
    statistic: float
    pvalue: float
    null_quantiles: dict[float, float]
    contributions: Tensor  # (F,)
    expected: float  # of a contribution under the hypothesis
    block: slice  # the frequencies that decided
    degrees_of_freedom: int | None = None


def _witness_axis(
    x: Tensor, y: Tensor, t: Tensor, gap: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, float]:
    """The direction in which ``φx - φy`` makes the two sets differ, and how much is along it.

    The witness ``f(z) = Σ_f Re (φx - φy)(t_f) e^(-i⟨t_f, z⟩)`` is large where x has more mass than
    y. The main axis of its gradients over the samples is where moving a sample changes sides.
    """
    z = torch.cat([x, y])
    if len(z) > _WITNESS_ROWS:
        z = z[shuffled(len(z), generator)[:_WITNESS_ROWS].to(z.device)]
    cos, sin = ops.features(z, t)
    weight = (gap[1] * cos - gap[0] * sin).cpu().double()
    gradient = weight @ t.cpu().double()  # (rows, D)
    # The smaller of the two Gram matrices; both have the same eigenvalues that matter.
    # Only its direction counts: of size 1, its square does not overflow.
    gradient = gradient / gradient.abs().max().clamp_min(1e-300)
    wide = gradient.shape[1] > len(gradient)
    values, axes = torch.linalg.eigh(gradient @ gradient.T if wide else gradient.T @ gradient)
    main = gradient.T @ axes[:, -1] if wide else axes[:, -1]
    axis = torch.nn.functional.normalize(main, dim=0).to(x.device, x.dtype)
    if _step(x @ axis, y @ axis) < 0:
        axis = -axis
    total = values.sum().item()
    return axis, values[-1].item() / total if total > 0 else 1.0 / x.shape[1]


def _step(x: Tensor, y: Tensor) -> float:
    """How far y lies beyond x, by a center that no single value moves; by the mean between ties."""
    return (y.median() - x.median()).item() or (y.mean() - x.mean()).item()


def explain(
    x: Tensor,
    y: Tensor,
    t: Tensor,
    phi: tuple[Phi, Phi],
    found: Finding,
    generator: torch.Generator,
) -> dict[str, Any]:
    """The fields of the result that say how the two sets differ, and where."""
    phi_x, phi_y = phi
    gap = [a - b for a, b in zip(phi_x, phi_y, strict=True)]
    axis, axis_share = _witness_axis(x, y, t[found.block], [g[found.block] for g in gap], generator)
    amplitude_x, amplitude_y = torch.hypot(*phi_x), torch.hypot(*phi_y)
    evidence = found.contributions - found.expected
    telling = evidence > 0 if bool((evidence > 0).any()) else torch.ones_like(evidence).bool()
    square = (gap[0].square() + gap[1].square())[telling].sum()
    amplitude = (amplitude_x - amplitude_y)[telling].square().sum()
    return {
        "discrepancy": unbiased(phi_x, phi_y, len(x), len(y)).mean().item(),
        "amplitude_x": amplitude_x,
        "amplitude_y": amplitude_y,
        "phase_gap": torch.atan2(
            phi_x[1] * phi_y[0] - phi_x[0] * phi_y[1], phi_x[0] * phi_y[0] + phi_x[1] * phi_y[1]
        ),
        "phase_share": (1 - amplitude / square).clamp(0, 1).item() if square > 0 else 0.0,
        "direction": axis,
        "direction_share": axis_share,
    }
