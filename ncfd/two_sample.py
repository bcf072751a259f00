"""Were two sets of samples drawn from one distribution? Tests built on characteristic functions.

Letters: N and M samples, n = N + M, D features, F frequencies, B permutations, S blocks of
frequencies (one for each scale), J learned frequencies.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncfd import _validation as check
from ncfd import ops
from ncfd._devices import widest_float

__all__ = ["TwoSampleTestResult", "two_sample_test"]

Samples = Tensor | NDArray[Any]

#: Bytes of features, of labels, and of whatever else grows with the samples, held at once.
_BLOCK_BYTES = 64 * 2**20
#: Multiples of 1/median distance. Low frequencies see location, high ones shape; the test takes the
#: block where the difference stands out most, which costs little at the others' expense.
_SCALES = (1.0, 2.0, 4.0)
_QUANTILES = (0.5, 0.9, 0.95, 0.99)
_MEDIAN_ROWS = 1000
_WITNESS_ROWS = 1000


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
        frequencies: ``(F, D)``, in radians per unit of the samples.
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
            norm = self.frequencies[i].norm().item()
            lines.append(
                f"  {norm:8.3g} {2 * torch.pi / max(norm, 1e-30):10.3g} "
                f"{self.amplitude_x[i]:8.3f} {self.amplitude_y[i]:7.3f} "
                f"{self.phase_gap[i]:+10.3f} {self.contributions[i]:10.3g}"
            )
        return "\n".join(lines)

    def _floor(self) -> str:
        B = self.n_permutations
        if B is None or self.pvalue * (1 + B) > 1.5:
            return ""
        return " (the smallest possible with this number of permutations)"


def two_sample_test(
    x: Samples,
    y: Samples,
    *,
    frequencies: Samples | None = None,
    method: Literal["permutation", "chi2"] = "permutation",
    n_permutations: int = 999,
    learn_frequencies: bool = False,
    seed: int | None = None,
    num_frequencies: int | None = None,
    scale: float | None = None,
    learn_fraction: float = 0.5,
) -> TwoSampleTestResult:
    r"""Test whether two sets of samples come from one distribution.

    ``"permutation"`` compares the unbiased ``½|φx - φy|²`` with its values after the samples are
    assigned to the two sides at random, B times:

    .. math:: p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B}

    It is valid for any distribution, sample size and frequencies: the rejection rate under the
    hypothesis is at most the level. All permutations together are one product of 0/1 labels with
    the cosines and sines, taken in blocks of bounded memory. By default the frequencies are normal
    with standard deviations 1, 2 and 4 over the median distance of the samples, and T is the
    largest of the three standardised discrepancies.

    ``"chi2"`` whitens the differences of cosines and sines with their estimated covariance,

    .. math:: W = n\, g^\top \hat\Sigma^+ g \;\sim\; \chi^2_{\mathrm{rank}\,\hat\Sigma}

    It needs no permutations, but is right only for large samples: use it when each side has some
    hundred or more. In one dimension with default frequencies (0.4 and 0.8 over half the
    interquartile range, and the correction for fewer than 25 samples) it is the Epps-Singleton
    test of ``scipy.stats.epps_singleton_2samp``. In D dimensions the same two frequencies are
    taken along random orthogonal directions, and W is multiplied by ``(n - 2F - 3)/(n - 2)``,
    which makes its mean that of χ² for normal features (Hotelling).

    With ``learn_frequencies=True`` a random part of both sets serves to learn one frequency scale
    per feature, by ascent of the discrepancy over its standard deviation (for ``"chi2"`` followed
    by a choice of the best J), and only the rest is tested. The rest is independent of the choice,
    so both methods stay as valid as with frequencies given beforehand. It pays where few of many
    features differ; elsewhere the samples it costs are worth more.

    Args:
        x: samples ``(N, D)`` or ``(N,)``, tensor or array, real, finite. N >= 2; 5 for ``"chi2"``.
        y: samples ``(M, D)`` or ``(M,)``.
        frequencies: ``(F, D)``, or ``(F,)`` if D = 1, in radians per unit of the samples; used as
            they are. Default: see above.
        method: ``"permutation"`` or ``"chi2"``.
        n_permutations: B, at least 1. The smallest p-value is 1/(1 + B).
        learn_frequencies: see above.
        seed: of frequencies, split and permutations. Default: a new one, kept in the result.
        num_frequencies: F. Default: 384 for permutations; for ``"chi2"`` 2 in one dimension, two
            along each of up to 16 directions in more, fewer for small sets, and 5 if
            learned (2 in one dimension).
        scale: the unit of default frequencies, instead of 1/median distance or 2/interquartile
            range.
        learn_fraction: part of each set that serves to learn, in (0, 1).

    Returns:
        A :class:`TwoSampleTestResult` with ``statistic``, ``pvalue`` and the reasons.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: shapes that do not fit, too few samples, NaN or infinite samples, options that
            contradict each other.

    Warns:
        RuntimeWarning: the covariance of ``"chi2"`` is singular (discrete samples, or repeated
            frequencies).

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g)
        >>> two_sample_test(x, y, seed=0).pvalue > 0.05
        True
        >>> result = two_sample_test(x, y + torch.tensor([1.0, 0.0]), seed=0)
        >>> result.pvalue, round(result.direction.abs()[0].item(), 1)
        (0.001, 1.0)

    Source: Epps & Singleton, *An omnibus test for the two-sample problem using the empirical
    characteristic function*, J. Stat. Comput. Simul. 26 (1986); Sutherland et al.,
    *Generative models and model criticism via optimized maximum mean discrepancy*, ICLR 2017;
    Chwialkowski et al., *Fast two-sample testing with analytic representations of probability
    measures*, NIPS 2015; Phipson & Smyth, *Permutation
    p-values should never be zero*, Stat. Appl. Genet. Mol. Biol. 9 (2010).
    """
    if not isinstance(method, str):
        raise TypeError(f'method must be "permutation" or "chi2", got {check.describe(method)}')
    if method not in ("permutation", "chi2"):
        raise ValueError(f'method must be "permutation" or "chi2", got {method!r}')
    B = check.check_count(n_permutations, "n_permutations")
    learn = check.check_flag(learn_frequencies, "learn_frequencies")
    if frequencies is not None:
        for name, value in (("num_frequencies", num_frequencies), ("scale", scale)):
            if value is not None:
                raise ValueError(f"{name} describes default frequencies; leave out one of the two")
        if learn:
            raise ValueError(
                "learn_frequencies=True finds its own frequencies; leave frequencies out"
            )
    if num_frequencies is not None:
        check.check_count(num_frequencies, "num_frequencies")
    if scale is not None:
        scale = check.check_positive(scale, "scale")
    learn_fraction = check.check_positive(learn_fraction, "learn_fraction")
    if learn_fraction >= 1:
        raise ValueError(f"learn_fraction must be in (0, 1), got {learn_fraction}")
    generator, seed = _generator(seed)
    x, y = _both(x, y)

    smallest = 2 if method == "permutation" else 5
    n_learn, learned = 0, None
    if learn:
        (x_learn, x), (y_learn, y) = (
            _split(side, learn_fraction, smallest, name, generator)
            for name, side in (("x", x), ("y", y))
        )
        n_learn = len(x_learn) + len(y_learn)
        choose = method == "chi2"
        F = num_frequencies or (min(5, 2 * x.shape[1]) if choose else 384)
        learned = _learn(x_learn, y_learn, F, choose, scale, generator)
    for name, side in (("x", x), ("y", y)):
        if len(side) < smallest:
            raise ValueError(
                f'{name} must have at least {smallest} samples for method="{method}", '
                f"got {len(side)}"
            )
    blocks = 1
    if learned is not None:
        t = learned
    elif frequencies is not None:
        t = _given_frequencies(frequencies, x)
    elif method == "permutation":
        t = _random_frequencies(x, y, num_frequencies or 384, scale, generator)
        blocks = min(len(_SCALES), len(t))
    else:
        t = _sliced_frequencies(x, y, num_frequencies, scale, generator)

    # A common shift turns both φ alike and changes nothing, but small phases are exact phases.
    center = _center(x, y)
    x, y = x - center, y - center
    phi_x, phi_y = _phi(x, t), _phi(y, t)
    if not all(bool(part.isfinite().all()) for part in (*phi_x, *phi_y)):
        raise ValueError(
            "frequencies (or their scale) are too large for these samples: the phases overflow "
            f"{x.dtype}"
        )
    if method == "permutation":
        found = _permutation(x, y, t, blocks, B, generator)
    else:
        found = _chi2(x, y, t)
    gap = [a - b for a, b in zip(phi_x, phi_y, strict=True)]
    axis, axis_share = _witness_axis(x, y, t[found.block], [g[found.block] for g in gap], generator)
    amplitude_x, amplitude_y = torch.hypot(*phi_x), torch.hypot(*phi_y)
    evidence = found.contributions - found.expected
    telling = evidence > 0 if bool((evidence > 0).any()) else torch.ones_like(evidence).bool()
    square = (gap[0].square() + gap[1].square())[telling].sum()
    amplitude = (amplitude_x - amplitude_y)[telling].square().sum()
    return TwoSampleTestResult(
        statistic=found.statistic,
        pvalue=found.pvalue,
        method=method,
        discrepancy=_unbiased(phi_x, phi_y, len(x), len(y)).mean().item(),
        n_x=len(x),
        n_y=len(y),
        n_learn=n_learn,
        n_permutations=B if method == "permutation" else None,
        degrees_of_freedom=found.degrees_of_freedom,
        null_quantiles=found.null_quantiles,
        frequencies=t,
        contributions=found.contributions,
        amplitude_x=amplitude_x,
        amplitude_y=amplitude_y,
        phase_gap=torch.atan2(
            phi_x[1] * phi_y[0] - phi_x[0] * phi_y[1], phi_x[0] * phi_y[0] + phi_x[1] * phi_y[1]
        ),
        phase_share=(1 - amplitude / square).clamp(0, 1).item() if square > 0 else 0.0,
        direction=axis,
        direction_share=axis_share,
        seed=seed,
    )


# ------------------------------------------------------------------------------------------------
# Arguments
# ------------------------------------------------------------------------------------------------


def _generator(seed: int | None) -> tuple[torch.Generator, int]:
    """A generator of the test's own, on the CPU: the same numbers for every device."""
    generator = torch.Generator()
    if seed is None:
        return generator, generator.seed()
    seed = check.check_seed(seed)
    return generator.manual_seed(seed), seed


def _shuffled(n: int, generator: torch.Generator) -> Tensor:
    """The numbers below n in random order, on the CPU whatever the default device."""
    return torch.randperm(n, generator=generator, device="cpu")


def _as_tensor(value: object, name: str) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got an array of {value.dtype}")
        # A copy, since the array may be read-only, big-endian or strided backwards.
        native = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
        value = torch.from_numpy(native)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor or a numpy array, got {check.describe(value)}")
    if value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {check.describe(value)}")
    value = check.check_tensor(value, name).detach()
    if not value.is_floating_point():
        value = value.to(widest_float(value.device))
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _both(x: Samples, y: Samples) -> tuple[Tensor, Tensor]:
    """Both sets as ``(N, D)`` and ``(M, D)`` of one dtype, and finite."""
    sides: list[Tensor] = []
    for name, value in (("x", x), ("y", y)):
        side = _as_tensor(value, name)
        if side.ndim == 1:
            side = side.unsqueeze(1)
        if side.ndim != 2 or side.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N, D) or (N,), not empty, got {check.describe(side)}; "
                f"flatten further dimensions with {name}.reshape(len({name}), -1)"
            )
        if sides:
            check.check_device(side, name, sides[0].device)
        if side.is_meta:
            raise ValueError(f"{name} must have values, got {check.describe(side)}")
        bad = ~side.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{name} must be finite, got {int(bad.sum())} NaN or infinite values in "
                f"{int(bad.any(1).sum())} of {len(side)} rows; remove or impute them first"
            )
        sides.append(side)
    x, y = sides
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have the same features, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _given_frequencies(frequencies: Samples, x: Tensor) -> Tensor:
    t = _as_tensor(frequencies, "frequencies")
    D = x.shape[1]
    if t.ndim == 1 and D == 1:
        t = t.unsqueeze(1)
    if t.ndim != 2 or t.shape[1] != D or len(t) == 0:
        raise ValueError(
            f"frequencies must have shape (F, {D}) to match the samples, got {check.describe(t)}"
        )
    check.check_device(t, "frequencies", x.device)
    if not bool(t.isfinite().all()):
        raise ValueError("frequencies must be finite, got NaN or infinite values")
    return t.to(x.dtype)


def _split(
    side: Tensor, fraction: float, smallest: int, name: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    cut = round(fraction * len(side))
    if min(cut, len(side) - cut) < max(smallest, 5):
        raise ValueError(
            f"{name} has {len(side)} samples, too few to learn from {cut} and test "
            f"{len(side) - cut}: each part needs 5; use learn_frequencies=False"
        )
    order = _shuffled(len(side), generator).to(side.device)
    return side[order[:cut]], side[order[cut:]]


def _center(x: Tensor, y: Tensor) -> Tensor:
    return (x.sum(0) + y.sum(0)) / (len(x) + len(y))


# ------------------------------------------------------------------------------------------------
# Frequencies
# ------------------------------------------------------------------------------------------------


def _normal(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    shape = rows, like.shape[1]
    draw = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return draw.to(like)


def _median_distance(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """Median distance of two samples of either set, from a random part of at most 1000 rows."""
    pooled = torch.cat([x, y])
    if len(pooled) > _MEDIAN_ROWS:
        pooled = pooled[_shuffled(len(pooled), generator)[:_MEDIAN_ROWS]]
    distance = torch.pdist(pooled - pooled.mean(0))
    median = distance.median().item()
    if median == 0:  # more than half the pairs are ties
        median = distance.max().item()
    return median or 1.0  # all samples equal: any scale says so


def _random_frequencies(
    x: Tensor, y: Tensor, F: int, scale: float | None, generator: torch.Generator
) -> Tensor:
    """Normal frequencies, ``(F, D)``: a block for each of the ``_SCALES``, lowest first."""
    unit = scale if scale is not None else 1 / _median_distance(x, y, generator)
    # F = 8 -> 3, 3, 2: the sizes that `Tensor.tensor_split` has.
    sizes = [len(part) for part in x.new_empty(F).tensor_split(min(len(_SCALES), F))]
    factor = torch.cat([x.new_full((n,), s) for n, s in zip(sizes, _SCALES, strict=False)])
    return _normal(F, x, generator) * (unit * factor).unsqueeze(1)


def _sliced_frequencies(
    x: Tensor, y: Tensor, F: int | None, scale: float | None, generator: torch.Generator
) -> Tensor:
    """Multiples of 0.4 over half the interquartile range, along directions: ``(F, D)``."""
    D = x.shape[1]
    if D == 1:
        F = F or 2
        direction = x.new_ones(1, 1)
        multiple = torch.arange(1, F + 1, device=x.device)
    else:
        # Whitening 2F features with n samples inflates W by about 2F/n; 48 samples a direction
        # on the smaller side keep that under a tenth, where the correction is reliable.
        K = min(2 * D, 16, max(2, min(len(x), len(y)) // 48)) if F is None else (F + 1) // 2
        F = F or 2 * K
        direction = _orthogonal(K, x, generator).repeat(2, 1)[:F]
        multiple = torch.tensor([1, 2], device=x.device).repeat_interleave(K)[:F]
    step = 0.4 * multiple.to(x).unsqueeze(1)
    if scale is not None:
        return direction * step * scale
    projected = torch.cat([x, y]) @ direction.T  # (n, F)
    low, high = (_quantile(projected, q) for q in (0.25, 0.75))
    half_range = 0.5 * (high - low)
    # More than half the samples tied along a direction: a standard deviation instead (times what
    # it is for a normal); and if all are, any scale says so.
    half_range = torch.where(half_range > 0, half_range, 0.6745 * projected.std(0))
    half_range = torch.where(half_range > 0, half_range, 1.0)
    return direction * step / half_range.unsqueeze(1)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Linearly interpolated quantile of each column; ``torch.quantile`` stops at 2^24 elements."""
    ordered = values.sort(0).values
    position = q * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _orthogonal(K: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """K random unit vectors, orthogonal in blocks of D."""
    D = like.shape[1]
    blocks = []
    for first in range(0, K, D):
        shape = D, min(D, K - first)
        draw = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        blocks.append(torch.linalg.qr(draw).Q.T)
    return torch.cat(blocks).to(like)


# ------------------------------------------------------------------------------------------------
# φ of both sides
# ------------------------------------------------------------------------------------------------


def _phi(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    cos_sum, sin_sum = ops.sums(x.unsqueeze(0), t.unsqueeze(0))
    return cos_sum[0, 0] / len(x), sin_sum[0, 0] / len(x)


def _unbiased(phi_x: tuple[Tensor, Tensor], phi_y: tuple[Tensor, Tensor], N: int, M: int) -> Tensor:
    """``½|φx - φy|²`` less its bias ``½(1-|φx|²)/(N-1) + ½(1-|φy|²)/(M-1)``, per frequency."""
    value = (phi_x[0] - phi_y[0]).square() + (phi_x[1] - phi_y[1]).square()
    for phi, size in ((phi_x, N), (phi_y, M)):
        value = value - (1 - phi[0].square() - phi[1].square()) / (size - 1)
    return 0.5 * value


def _witness_axis(
    x: Tensor, y: Tensor, t: Tensor, gap: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, float]:
    """The direction in which ``φx - φy`` makes the two sets differ, and how much is along it.

    The witness ``f(z) = Σ_f Re (φx - φy)(t_f) e^(-i⟨t_f, z⟩)`` is large where x has more mass than
    y. The main axis of its gradients over the samples is where moving a sample changes sides.
    """
    z = torch.cat([x, y])
    if len(z) > _WITNESS_ROWS:
        z = z[_shuffled(len(z), generator)[:_WITNESS_ROWS].to(z.device)]
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
    if (y.mean(0) - x.mean(0)) @ axis < 0:
        axis = -axis
    total = values.sum().item()
    return axis, values[-1].item() / total if total > 0 else 1.0 / x.shape[1]


# ------------------------------------------------------------------------------------------------
# The two tests
# ------------------------------------------------------------------------------------------------


@dataclass
class _Finding:
    statistic: float
    pvalue: float
    null_quantiles: dict[float, float]
    contributions: Tensor  # (F,)
    expected: float  # of a contribution under the hypothesis
    block: slice  # the frequencies that decided
    degrees_of_freedom: int | None = None


def _permutation(
    x: Tensor, y: Tensor, t: Tensor, blocks: int, B: int, generator: torch.Generator
) -> _Finding:
    """Exact test by re-assigning the samples: 0/1 labels times the features.

    With features less their pooled mean p, the labelled rows sum to S and the others to -S. So one
    sum gives both sides, ``φ_1 = p + S/m``, ``φ_2 = p - S/(n-m)``, without cancellation.
    """
    z = torch.cat([x, y])
    n, F = len(z), len(t)
    small = min(len(x), len(y))  # rows that get label 1: the smaller side
    pooled = _phi(z, t)
    parts = torch.arange(F, device="cpu").tensor_split(blocks)
    slices = [slice(int(i[0]), int(i[-1]) + 1) for i in parts]
    # The observed one comes first.
    values = torch.empty(B + 1, blocks, dtype=torch.float64, device="cpu")
    total, squares = (torch.zeros(F, dtype=torch.float64, device="cpu") for _ in range(2))
    observed = total
    at_once = max(1, min(B + 1, _BLOCK_BYTES // n))
    for first in range(0, B + 1, at_once):
        shape = min(at_once, B + 1 - first), n
        labels = torch.zeros(shape, dtype=torch.bool, device="cpu")
        for row, label in enumerate(labels):
            if first + row == 0:
                label[: len(x)] = len(x) <= len(y)
                label[len(x) :] = len(x) > len(y)
            else:
                label[_shuffled(n, generator)[:small]] = True
        cos, sin = _labelled_sums(z, t, pooled, labels)
        sides = [
            [p + sign * s / m for p, s in zip(pooled, (cos, sin), strict=True)]
            for sign, m in ((1, small), (-1, n - small))
        ]
        one, two = ((side[0], side[1]) for side in sides)
        unbiased = _unbiased(one, two, small, n - small).cpu().double()  # (b, F)
        last = first + len(labels)
        for k, part in enumerate(slices):
            values[first:last, k] = unbiased[:, part].mean(1)
        total += unbiased.sum(0)
        squares += unbiased.square().sum(0)
        if first == 0:
            observed = unbiased[0]
    # Standardised with the observed value among the others, so that all B + 1 stay exchangeable.
    spread = values.std(0, correction=0)
    standard = (values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)
    best = standard.amax(1)
    # Permutations that tie with the observed assignment (small or discrete sets) must count, and
    # differ from it by rounding.
    slack = 1e3 * torch.finfo(x.dtype).eps * max(1.0, best[0].abs().item())
    mean = total / (B + 1)
    deviation = (squares / (B + 1) - mean.square()).clamp(min=0).sqrt()
    contributions = (observed - mean) / torch.where(deviation > 0, deviation, 1.0)
    return _Finding(
        statistic=best[0].item(),
        pvalue=(1 + int((best[1:] >= best[0] - slack).sum())) / (1 + B),
        null_quantiles={q: best[1:].quantile(q).item() for q in _QUANTILES},
        contributions=contributions.to(x),
        expected=0.0,
        block=slices[int(standard[0].argmax())],
    )


def _labelled_sums(
    z: Tensor, t: Tensor, pooled: tuple[Tensor, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ over the labelled rows of cos - p and sin - p: labels ``(b, n)`` -> two ``(b, F)``."""
    b, F = len(labels), len(t)
    sums = torch.zeros(b, 2 * F, dtype=widest_float(z.device), device=z.device)
    rows = max(1, _BLOCK_BYTES // (z.element_size() * max(4 * F, b)))
    with torch.autocast(z.device.type, enabled=False):
        for first in range(0, len(z), rows):
            cos, sin = ops.features(z[first : first + rows], t)
            features = torch.cat([cos - pooled[0], sin - pooled[1]], 1)  # (rows, 2F)
            sums += labels[:, first : first + rows].to(z) @ features
    return sums[:, :F], sums[:, F:]


def _moments(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(2F,)`` and covariance ``(2F, 2F)`` (divided by N) of cos and sin at ``t``."""
    F = len(t)
    wide = widest_float(x.device)
    x, t = x.to(wide), t.to(wide)
    mean = torch.cat(_phi(x, t))
    square = mean.new_zeros(2 * F, 2 * F)
    rows = max(1, _BLOCK_BYTES // (4 * F * x.element_size()))
    for first in range(0, len(x), rows):
        features = torch.cat(ops.features(x[first : first + rows], t), 1) - mean
        square += features.T @ features
    return mean, square / len(x)


def _chi2(x: Tensor, y: Tensor, t: Tensor) -> _Finding:
    """The whitened statistic and its limit."""
    N, M, F, D = len(x), len(y), len(t), x.shape[1]
    n = N + M
    if n <= 2 * F + 3:
        raise ValueError(
            f'method="chi2" with F = {F} frequencies needs more than 2F + 3 = {2 * F + 3} samples '
            f'in both sets, got {n}; use fewer frequencies or method="permutation"'
        )
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x, t), _moments(y, t)
    gap = (mean_x - mean_y).cpu()
    covariance = (cov_x * (n / N) + cov_y * (n / M)).cpu()  # of √n gap, (2F, 2F)
    values, axes = torch.linalg.eigh(covariance)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    rank = int(kept.sum())
    if rank < 2 * F:
        warnings.warn(
            f"the covariance of the {2 * F} features has rank {rank}: samples are discrete or "
            "frequencies redundant, and differences outside its range go unseen; use other "
            'frequencies or method="permutation"',
            RuntimeWarning,
            stacklevel=3,
        )
    along = axes.T @ gap
    statistic = n * (along[kept].square() / values[kept]).sum().item()
    if D > 1:
        statistic *= (n - 2 * F - 3) / (n - 2)
    elif max(N, M) < 25:
        # Epps & Singleton's fit of the size in small samples.
        statistic /= 1 + n**-0.45 + 10.1 * (N**-1.7 + M**-1.7)
    own = covariance.reshape(2, F, 2, F).diagonal(dim1=1, dim2=3).permute(2, 0, 1)  # (F, 2, 2)
    pair = gap.reshape(2, F).T.unsqueeze(2)  # (F, 2, 1)
    contributions = n * (pair.mT @ torch.linalg.pinv(own, hermitian=True) @ pair).flatten()
    return _Finding(
        statistic=statistic,
        pvalue=_chi2_tail(statistic, rank),
        null_quantiles={q: _chi2_quantile(q, rank) for q in _QUANTILES},
        contributions=contributions.to(x),
        expected=2.0,
        block=slice(0, F),
        degrees_of_freedom=rank,
    )


def _chi2_tail(value: float, degrees: int) -> float:
    if degrees == 0:
        return 1.0
    half = torch.tensor([0.5 * degrees, 0.5 * value], dtype=torch.float64, device="cpu")
    return float(torch.special.gammaincc(half[0], half[1]))


def _chi2_quantile(level: float, degrees: int) -> float:
    low, high = 0.0, 10.0 * degrees + 100.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _chi2_tail(middle, degrees) > 1 - level:
            low = middle
        else:
            high = middle
    return low


# ------------------------------------------------------------------------------------------------
# Learning
# ------------------------------------------------------------------------------------------------

_LEARN_FREQUENCIES = 128
_LEARN_STEPS = 60
_LEARN_RATE = 0.1
_LEARN_ROWS = 5000
# Added to the covariance, relative to its diagonal: features that nearly repeat each other would
# otherwise look infinitely telling.
_RIDGE = 0.01


def _learn(
    x: Tensor, y: Tensor, F: int, choose: bool, scale: float | None, generator: torch.Generator
) -> Tensor:
    """F frequencies for telling samples like these apart: ``(F, D)``.

    Learned is one scale σ per feature, ``t = σ ⊙ ε``: few numbers, so that little noise is learned
    along. With ``choose`` the F best of many such frequencies are taken, else fresh ones.
    """
    unit = scale if scale is not None else 1 / _median_distance(x, y, generator)
    center = _center(x, y)
    with torch.inference_mode(False), torch.enable_grad():
        # In units of the median distance; the ascent then has one step size for all problems.
        x, y = ((side[:_LEARN_ROWS] - center) * unit for side in (x, y))
        noise = _normal(_LEARN_FREQUENCIES, x, generator)
        start = max(_SCALES, key=lambda s: _signal_to_noise(x, y, s * noise).item())
        log_scale = x.new_full((x.shape[1],), start).log().requires_grad_()
        optimizer = torch.optim.Adam([log_scale], lr=_LEARN_RATE, maximize=True)
        with x.device:  # PyTorch 2.5 counts steps on the default device, whatever that is
            for _ in range(_LEARN_STEPS):
                value = _signal_to_noise(x, y, log_scale.exp() * noise)
                (log_scale.grad,) = torch.autograd.grad(value, log_scale)
                optimizer.step()
    learned = log_scale.detach().exp()
    if choose:
        candidates = learned * noise
        # Ever lower frequencies compare means ever better, but not apart from each other: whitening
        # needs phases that spread, half a radian in the median.
        spread = (torch.cat([x, y]) @ candidates.T).std(0).median()
        candidates = candidates * (0.5 / spread.clamp(min=1e-6)).clamp(min=1.0)
        return candidates[_greedy(x, y, candidates, F)] * unit
    return learned * _normal(F, x, generator) * unit


def _signal_to_noise(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Unbiased discrepancy over its standard deviation when there is a difference.

    The discrepancy is to first order a difference of means of the witness function over the two
    sets, so its variance is that of the witness.
    """
    features = [torch.cat(ops.features(side, t), 1) for side in (x, y)]
    means = [f.mean(0) for f in features]
    gap = means[0] - means[1]
    F = len(t)
    phi_x, phi_y = ((m[:F], m[F:]) for m in means)
    spread_x, spread_y = (((f @ gap) / F).var() / len(f) for f in features)
    # The floor is what chance leaves of the variance where there is no difference.
    floor = (1 / len(x) + 1 / len(y)) ** 2 / F
    return _unbiased(phi_x, phi_y, len(x), len(y)).mean() / (spread_x + spread_y + floor).sqrt()


def _greedy(x: Tensor, y: Tensor, candidates: Tensor, J: int) -> Tensor:
    """Indices of J candidates, each the best addition to those before it.

    The gain of a candidate is its ``g' Σ^-1 g`` after what the chosen ones explain is taken out of
    gap and covariance: a Schur complement for each choice.
    """
    C = len(candidates)
    n = len(x) + len(y)
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x, candidates), _moments(y, candidates)
    # Where all phases are nearly equal (|φ|² above 0.95), only means differ, to the last digits.
    blind = (0.5 * (mean_x + mean_y)).reshape(2, C).square().sum(0) > 0.95
    gap = mean_x - mean_y
    covariance = cov_x * (n / len(x)) + cov_y * (n / len(y))
    scale = covariance.diagonal().clamp(min=1e-12).sqrt()
    gap, covariance = gap / scale, covariance / (scale * scale.unsqueeze(1))
    covariance = covariance + _RIDGE * torch.eye(2 * C, dtype=gap.dtype, device=gap.device)
    chosen: list[int] = []
    for _ in range(min(J, C)):
        own = covariance.reshape(2, C, 2, C).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        pair = gap.reshape(2, C).T.unsqueeze(2)
        gain = (pair.mT @ torch.linalg.solve(own, pair)).flatten()
        gain[blind] = -1.0
        gain[chosen] = -2.0
        best = int(gain.argmax())
        chosen.append(best)
        columns = covariance[:, [best, best + C]]  # (2C, 2)
        explained = torch.linalg.solve(covariance[[best, best + C]][:, [best, best + C]], columns.T)
        gap = gap - explained.T @ gap[[best, best + C]]
        covariance = covariance - columns @ explained
        # A chosen one explains itself; its ridge keeps the later solves regular.
        for i in (best, best + C):
            covariance[i, i] += 1.0
    return torch.tensor(chosen, device=x.device)
