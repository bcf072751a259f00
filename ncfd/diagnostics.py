"""Are these frequencies any good for these samples? Numbers, and what to change.

Letters: N samples, D features, F frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ncfd import _validation as check
from ncfd import ops
from ncfd._arrays import Samples, as_tensor
from ncfd._devices import widest_float

__all__ = ["FrequencyReport", "frequency_report"]

#: Error of a phase in units of the phase's root mean square, by the arithmetic that forms it
#: (measured at D = 2048). ``ncfd`` uses float32 with TF32 off, and float64 for float64 samples.
_PHASE_ERRORS = {"bfloat16": 2.4e-3, "tf32": 3e-4, "float32": 4e-8}

# Of φ̂ that are nothing but noise, |φ̂|² is exponential with mean 1/N: this share is below the mean.
_NOISE_BELOW_FLOOR = 1 - math.exp(-1)

_BLOCK_BYTES = 64 * 2**20
_RANK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class FrequencyReport:
    """What :func:`frequency_report` found; ``print`` shows it as a table with its warnings.

    Attributes:
        num_samples: N.
        num_features: D.
        num_frequencies: F.
        norms: ``|t|``, ``(F,)``.
        phase_spread: standard deviation of ``⟨t, x⟩`` over the samples in radians, ``(F,)``.
        amplitude: ``|φ̂|``, ``(F,)``.
        signal_limit: ``√(ln N)``, the phase spread where ``|φ| = exp(-s²/2)`` meets the noise.
        noise_floor: ``1/√N``, the root mean square of ``|φ̂|`` where φ is 0.
        share_below_floor: share of frequencies with ``|φ̂|`` below it.
        noise_share: estimated share of frequencies that carry only noise. Of those, 63 % fall
            below the floor, so this is ``share_below_floor / 0.63``, at most 1.
        share_wrapped: share of frequencies with a phase spread above π.
        distinct_frequencies: distinct rows of ``t``, exactly; ``t`` and ``-t`` count once.
        distinct_samples: distinct rows of ``x``, exactly.
        phase_rms: root mean square of all phases.
        phase_errors: arithmetic -> error of a phase in radians.
        precision_at_risk: arithmetic -> whether that error exceeds the noise floor.
        null_floor: what ``ncfd_loss`` (root, ``alpha=0.5``) comes to for two sets of N samples
            with no difference but chance.
        warnings: what is wrong, each with what to change; empty if nothing is.

    Example:
        >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> report = frequency_report(x, torch.full((16, 4), 9.0))  # far too high
        >>> report.noise_share > 0.5, len(report.warnings) > 0
        (True, True)
        >>> sorted(report.scalars())[:2]
        ['amplitude', 'distinct_frequencies']
    """

    num_samples: int
    num_features: int
    num_frequencies: int
    norms: Tensor = field(repr=False)
    phase_spread: Tensor = field(repr=False)
    amplitude: Tensor = field(repr=False)
    signal_limit: float
    noise_floor: float
    share_below_floor: float
    noise_share: float
    share_wrapped: float
    distinct_frequencies: int
    distinct_samples: int
    phase_rms: float
    phase_errors: dict[str, float]
    precision_at_risk: dict[str, bool]
    null_floor: float
    warnings: tuple[str, ...]

    def null_loss(self, num_synthetic: int) -> float:
        """The null floor for N samples against another number M of them.

        Args:
            num_synthetic: M, at least 1.

        Returns:
            Expected root loss of two sets of one distribution with N and M samples.

        Raises:
            TypeError: ``num_synthetic`` is not an int.
            ValueError: it is less than 1.
        """
        M = check.check_count(num_synthetic, "num_synthetic")
        return self.null_floor * math.sqrt(0.5 * (1 + self.num_samples / M))

    def scalars(self) -> dict[str, float]:
        """For a log.

        Returns:
            The numbers worth logging over the course of a training, by name.
        """
        return {
            "norm": self.norms.median().item(),
            "phase_spread": self.phase_spread.median().item(),
            "amplitude": self.amplitude.median().item(),
            "noise_floor": self.noise_floor,
            "noise_share": self.noise_share,
            "share_wrapped": self.share_wrapped,
            "distinct_frequencies": float(self.distinct_frequencies),
            "distinct_samples": float(self.distinct_samples),
            "null_floor": self.null_floor,
        }

    def __str__(self) -> str:
        N, F = self.num_samples, self.num_frequencies
        lines = [
            f"Frequency report: {N} samples, {self.num_features} features, {F} frequencies",
            f"  {'':22}{'min':>9}{'median':>9}{'max':>9}",
        ]
        for name, values, note in (
            ("norm |t|", self.norms, ""),
            (
                "phase spread, rad",
                self.phase_spread,
                f"signal up to √(ln N) = {self.signal_limit:.3g}, wraps at π",
            ),
            ("|φ|", self.amplitude, f"noise floor 1/√N = {self.noise_floor:.3g}"),
        ):
            row = "".join(
                f"{v.item():>9.3g}" for v in (values.min(), values.median(), values.max())
            )
            lines.append(f"  {name:22}{row}   {note}".rstrip())
        for name, text in (
            (
                "below noise floor",
                f"{self.share_below_floor:.0%} (about {self.noise_share:.0%} carry only noise)",
            ),
            ("phase spread above π", f"{self.share_wrapped:.0%}"),
            ("distinct frequencies", f"{self.distinct_frequencies} of {F}"),
            ("distinct samples", f"{self.distinct_samples} of {N}"),
            (
                "phase error, rad",
                ", ".join(
                    f"{name} {error:.1g}{' (at risk)' if self.precision_at_risk[name] else ''}"
                    for name, error in self.phase_errors.items()
                ),
            ),
            ("null floor of the loss", f"{self.null_floor:.3g} ({N} against {N} samples)"),
        ):
            lines.append(f"  {name:24}{text}")
        lines += [f"  warning: {text}" for text in self.warnings] or ["  no warnings"]
        return "\n".join(lines)


@torch.no_grad()
def frequency_report(x: Samples, t: Samples) -> FrequencyReport:
    r"""Check frequencies against the samples they are to compare.

    A frequency carries signal while the phase spread s of the samples satisfies ``s² < ln N``,
    because ``|φ|`` falls like ``exp(-s²/2)`` and an estimate has the noise ``1/√N``. A sampler that
    wins the game by running away to frequencies of pure noise, samples that collapse to a point,
    repeated frequencies, phases too large for the arithmetic: each gives a line in ``warnings``.

    Args:
        x: samples ``(N, D)``, at least two; the features as the loss sees them. A floating-point
            tensor, or anything of which ``numpy.asarray`` makes a numeric array; of a masked array
            the rows without a masked value.
        t: frequencies ``(F, D)``, likewise.

    Returns:
        A :class:`FrequencyReport`.

    Raises:
        TypeError: ``x`` or ``t`` is not a floating-point tensor and no numeric array either.
        ValueError: shapes or devices that do not fit, or a single sample.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 8, generator=g)
        >>> good = frequency_report(x, 0.3 * torch.randn(64, 8, generator=g))
        >>> good.warnings
        ()
        >>> print(frequency_report(x, 30 * torch.randn(64, 8, generator=g)).warnings[0][:43])
        all frequencies carry only noise: the phase

    Source: Ushakov, *Selected Topics in Characteristic Functions*, 1999, chapter 3 (the noise of
    the empirical characteristic function); Sriperumbudur & Szabó, *Optimal rates for random Fourier
    features*, NIPS 2015.
    """
    x = check.check_samples(x if isinstance(x, Tensor) else as_tensor(x, "x"), "x")
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"x must have shape (N, D) with N >= 2, got {check.describe(x)}{check.as_rows(x, 'x')}"
        )
    t = t if isinstance(t, Tensor) else as_tensor(t, "t")
    t = check.check_frequencies(t, x, "x")
    if x.is_meta:
        raise ValueError(f"x must have values, got {check.describe(x)}")
    dtype = torch.float64 if torch.float64 in (x.dtype, t.dtype) else torch.float32
    x, t = x.to(dtype), t.to(dtype)
    (N, D), F = x.shape, len(t)

    center = x.mean(0)
    spread, rms = _phase_moments(x, t, center)
    cos_sum, sin_sum = ops.sums(x.unsqueeze(0), t.unsqueeze(0))
    amplitude = torch.hypot(cos_sum, sin_sum)[0, 0] / N
    noise_floor = 1 / math.sqrt(N)
    below = (amplitude < noise_floor).cpu().double().mean().item()
    phase_rms = rms.square().mean().sqrt().item()
    errors = {name: relative * phase_rms for name, relative in _PHASE_ERRORS.items()}
    # √½ E|Δ| for a complex normal Δ of variance 2 (1 - |φ|²)/N: √½ √π/2 √2 = √π/2 = 0.886.
    null = 0.5 * math.sqrt(math.pi / N) * (1 - amplitude.square()).clamp(min=0).sqrt()
    values = FrequencyReport(
        num_samples=N,
        num_features=D,
        num_frequencies=F,
        norms=t.to(widest_float(t.device)).norm(dim=1).to(dtype),
        phase_spread=spread,
        amplitude=amplitude,
        signal_limit=math.sqrt(math.log(N)),
        noise_floor=noise_floor,
        share_below_floor=below,
        noise_share=min(1.0, below / _NOISE_BELOW_FLOOR),
        share_wrapped=(spread > math.pi).cpu().double().mean().item(),
        distinct_frequencies=_distinct(t, up_to_sign=True),
        distinct_samples=_distinct(x),
        phase_rms=phase_rms,
        phase_errors=errors,
        precision_at_risk={name: error > noise_floor for name, error in errors.items()},
        null_floor=null.mean().item(),
        warnings=(),
    )
    object.__setattr__(values, "warnings", tuple(_warnings(values, x, t, center)))
    return values


def _phase_moments(x: Tensor, t: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and root mean square of ``⟨t, x⟩`` over the samples, ``(F,)`` each."""
    square = t.new_zeros(len(t))
    rows = max(1, _BLOCK_BYTES // (len(t) * x.element_size()))
    with torch.autocast(x.device.type, enabled=False):
        for part in torch.split(x, rows):
            square += ((part - center) @ t.T).square().sum(0)
        mean = t @ center
    variance = square / len(x)
    return variance.sqrt(), (variance + mean.square()).sqrt()


def _distinct(rows: Tensor, up_to_sign: bool = False) -> int:
    """Distinct rows; with ``up_to_sign`` a row and its negative count once.

    Rows are equal if all their numbers are. What sorting them costs is spent only on rows that
    share a sum of their bits, modulo 2^64, with another: equal ones do.
    """
    if up_to_sign:  # the first number that is not zero becomes positive
        first = rows.gather(1, (rows != 0).to(torch.uint8).argmax(1, keepdim=True))
        rows = torch.where(first < 0, -rows, rows)
    bits = (rows + 0.0).view(torch.int64 if rows.dtype == torch.float64 else torch.int32)  # no -0
    generator = torch.Generator().manual_seed(0)
    factor = torch.randint(2**62, (rows.shape[1],), generator=generator, device="cpu").to(
        rows.device
    )
    length = max(1, _BLOCK_BYTES // (8 * rows.shape[1]))
    sums = torch.cat([(part * factor).sum(1) for part in torch.split(bits, length)])
    _, place, count = torch.unique(sums, return_inverse=True, return_counts=True)
    shared = count[place] > 1
    alone = len(rows) - int(shared.sum())
    return alone + len(torch.unique(bits[shared], dim=0))


def _warnings(report: FrequencyReport, x: Tensor, t: Tensor, center: Tensor) -> list[str]:
    """One line for each thing that is wrong, with the way out."""
    if not bool(x.isfinite().all()) or not bool(t.isfinite().all()):
        name = "t" if bool(x.isfinite().all()) else "x"
        return [f"{name} holds NaN or infinite values, so all φ are NaN: find where they come from"]
    unit = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)  # so that no square overflows
    found, collapsed = _sample_warnings(report, x / unit, center / unit)
    return found + _frequency_warnings(report, collapsed) + _arithmetic_warnings(report)


def _sample_warnings(report: FrequencyReport, x: Tensor, center: Tensor) -> tuple[list[str], bool]:
    """And whether the samples have collapsed to a point."""
    found = []
    N = report.num_samples
    deviation = (x - center).square().sum(1).mean().sqrt().item()
    size = x.square().sum(1).mean().sqrt().item()
    collapsed = deviation <= 1e-2 * size
    if report.distinct_samples == 1:
        found.append(
            "all samples are equal: the features have collapsed to a point, no frequency can help; "
            "weaken what pulls them together, or use unbiased=True, whose gradient does not"
        )
    elif collapsed:
        found.append(
            f"the samples differ by {deviation / size:.1g} of their distance from the origin: "
            "either they collapse to a point, then weaken what pulls them together, or the origin "
            "is far away, then subtract the mean of the real side from both sides"
        )
    elif report.distinct_samples < 0.5 * N:
        found.append(
            f"only {report.distinct_samples} of {N} samples are distinct: repeated rows add no "
            "information and the noise floor is that of the distinct ones; draw without replacement"
        )
    if not collapsed and min(N, report.num_features) >= 4:
        rank = _effective_rank(x[:_RANK_ROWS] - center)
        if rank < 1.5:
            found.append(
                f"the samples vary along one direction (effective rank {rank:.2g} of "
                f"{report.num_features}): the features have collapsed to a line; weaken what pulls "
                "them together, or standardise the features"
            )
    return found, collapsed


def _frequency_warnings(report: FrequencyReport, collapsed: bool) -> list[str]:
    found = []
    F = report.num_frequencies
    spread = report.phase_spread.median().item()
    limit = report.signal_limit
    if report.noise_share > 0.2:
        share = "all" if report.noise_share > 0.95 else f"about {report.noise_share:.0%} of the"
        text = f"{share} frequencies carry only noise: "
        if spread > limit:
            text += (
                f"the phase spread is {spread:.3g} rad against a limit of {limit:.3g}; divide the "
                f"scale of t by {2 * spread / limit:.2g}, bound the sampler's scale or lower its "
                "learning rate, or use more samples"
            )
        else:
            text += (
                f"|φ| is below 1/√N = {report.noise_floor:.3g}; divide the scale of t by 2, or use "
                "more samples"
            )
        found.append(text)
    if report.share_wrapped > 0.2:
        found.append(
            f"the phases of {report.share_wrapped:.0%} of the frequencies spread over more than π, "
            "so that they wrap and the loss no longer says which way to move; divide the scale of "
            f"t by {max(2.0, spread / (0.5 * math.pi)):.2g}"
        )
    if not collapsed and report.distinct_samples > 1 and spread < 0.1:
        found.append(
            f"the phase spread is only {spread:.2g} rad, so that all |φ| are near 1 and only means "
            f"are compared: multiply the scale of t by {1 / max(spread, 1e-12):.2g}"
        )
    zeros = int((report.norms == 0).sum())
    if zeros:
        found.append(
            f"{zeros} of {F} frequencies are 0, where φ is 1 for every distribution: leave them out"
        )
    if report.distinct_frequencies < F:
        found.append(
            f"only {report.distinct_frequencies} of {F} frequencies are distinct (t and -t count "
            "once, |Δφ| is even): repetition costs time and adds nothing; draw each one anew"
        )
    return found


def _arithmetic_warnings(report: FrequencyReport) -> list[str]:
    found = []
    if report.precision_at_risk["float32"]:
        found.append(
            f"phases of {report.phase_rms:.3g} rad are off by {report.phase_errors['float32']:.1g} "
            "in float32, more than the noise: pass float64, subtract the mean of the real side "
            "from both sides, or lower the scale of t"
        )
    elif report.precision_at_risk["tf32"]:
        found.append(
            f"phases of {report.phase_rms:.3g} rad would be off by "
            f"{report.phase_errors['tf32']:.1g} in TF32, more than the noise: keep "
            "torch.backends.cuda.matmul.allow_tf32 False, or lower the scale of t"
        )
    return found


def _effective_rank(centered: Tensor) -> float:
    """``(tr C)² / tr C²`` of the covariance C: D if isotropic, 1 if all lies on a line."""
    wide = centered.shape[1] > len(centered)
    gram = centered @ centered.T if wide else centered.T @ centered
    scale = gram.diagonal().sum()
    return 1.0 if scale == 0 else 1 / (gram / scale).square().sum().item()
