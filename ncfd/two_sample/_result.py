"""What the test found, in numbers and as a report.

Letters: N and M samples, D features, F frequencies, B permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["TwoSampleTestResult"]


@dataclass(frozen=True, eq=False)
class TwoSampleTestResult:
    """What :func:`two_sample_test` found; ``print`` shows it as a short report.

    Attributes:
        statistic: ``"permutation"``: how many standard deviations of its permutation distribution
            the unbiased discrepancy lies above that distribution's mean, at the scale where this
            is largest. ``"chi2"``: the whitened statistic.
        pvalue: probability of a statistic at least as large if both sets have one distribution.
        method: ``"permutation"`` or ``"chi2"``.
        discrepancy: ``½|φx - φy|²`` averaged over the frequencies, without bias: the value of
            ``ncfd_loss(x, y, frequencies, squared=True, unbiased=True)``. Can be negative.
        n_x: rows of ``x`` that were tested.
        n_y: rows of ``y`` that were tested.
        n_learn: rows used to learn the frequencies; they are not among ``n_x`` and ``n_y``.
        n_permutations: B, or None for ``"chi2"``.
        degrees_of_freedom: of the χ² distribution, or None for ``"permutation"``.
        null_quantiles: quantiles of the statistic under the hypothesis: level -> value.
        frequencies: ``(F, D)``, in radians per unit of the samples; in float64 where float32 does
            not hold them, infinite where float64 does not.
        contributions: ``(F,)``, the evidence of each frequency alone. ``"permutation"``: standard
            deviations above the mean, as ``statistic``. ``"chi2"``: χ² with 2 degrees of freedom.
        amplitude_x: ``|φx|``, ``(F,)``.
        amplitude_y: ``|φy|``, ``(F,)``.
        phase_gap: argument of ``φx conj φy`` in [-π, π], ``(F,)``.
        phase_share: share of ``Σ|φx - φy|²`` that is phase (location) rather than amplitude
            (spread and shape), over the frequencies with evidence, in [0, 1].
        direction: unit vector ``(D,)`` along which the two sets differ most: the main axis of the
            gradients of the witness function, pointing from ``x`` to ``y``.
        direction_share: share of the squared gradients along ``direction``: 1 if the sets differ
            along one line, 1/D if in all directions alike.
        seed: the seed that repeats this result.

    Example:
        >>> import torch
        >>> from ncfd import two_sample_test
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> result = two_sample_test(x, x[:100] + torch.tensor([1.0, 0.0]), seed=0)
        >>> result.pvalue, result.direction.abs().argmax().item()  # the first feature
        (0.001, 0)
        >>> result.frequencies[result.top(3)].shape
        torch.Size([3, 2])
    """

    statistic: float
    pvalue: float
    method: str
    discrepancy: float
    n_x: int
    n_y: int
    n_learn: int
    n_permutations: int | None
    degrees_of_freedom: int | None
    null_quantiles: dict[float, float]
    frequencies: Tensor = field(repr=False)
    contributions: Tensor = field(repr=False)
    amplitude_x: Tensor = field(repr=False)
    amplitude_y: Tensor = field(repr=False)
    phase_gap: Tensor = field(repr=False)
    phase_share: float
    direction: Tensor = field(repr=False)
    direction_share: float
    seed: int

    def top(self, k: int = 3) -> Tensor:
        """Where the evidence is.

        Args:
            k: how many; more than F give all of them.

        Returns:
            Indices of the ``k`` frequencies with most evidence, the strongest first.
        """
        return self.contributions.topk(min(k, len(self.contributions))).indices

    def __str__(self) -> str:
        F, D = self.frequencies.shape
        if self.n_permutations is not None:
            how = f"{self.n_permutations} permutations"
        else:
            how = f"chi2 with {self.degrees_of_freedom} degrees of freedom"
        quantiles = ", ".join(f"{q:.0%} {v:.4g}" for q, v in self.null_quantiles.items())
        lines = [
            f"Two-sample test ({how}): {self.n_x} against {self.n_y} samples, {D} features, "
            f"{F} {'learned ' if self.n_learn else ''}frequencies"
            + (f" (from {self.n_learn} other samples)" if self.n_learn else ""),
            f"  statistic {self.statistic:.4g} (without a difference: {quantiles})",
            f"  p-value   {self.pvalue:.3g}" + self._floor(),
            f"  {self.phase_share:.0%} of the gap is phase (location), "
            f"{1 - self.phase_share:.0%} amplitude (spread, shape)",
        ]
        if D > 1:
            order = self.direction.abs().argsort(descending=True)[:4].tolist()
            terms = " ".join(f"{self.direction[i].item():+.2f} x[{i}]" for i in order)
            lines.append(
                f"  direction {terms}{' ...' if D > 4 else ''} "
                f"({self.direction_share:.0%} of the difference; {1 / D:.0%} would be none)"
            )
        lines.append("  strongest frequencies:")
        lines.append("     |t|   wavelength   |φx|    |φy|   phase gap   evidence")
        for i in self.top().tolist():
            norm = math.hypot(*self.frequencies[i].tolist())  # whose squares may overflow
            lines.append(
                f"  {norm:8.3g} {2 * math.pi / norm if norm else math.inf:10.3g} "
                f"{self.amplitude_x[i]:8.3f} {self.amplitude_y[i]:7.3f} "
                f"{self.phase_gap[i]:+10.3f} {self.contributions[i]:10.3g}"
            )
        return "\n".join(lines)

    def _floor(self) -> str:
        B = self.n_permutations
        if B is None or self.pvalue * (1 + B) > 1.5:
            return ""
        return " (the smallest possible with this number of permutations)"
