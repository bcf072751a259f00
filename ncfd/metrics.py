"""The discrepancy as a metric of :mod:`torchmetrics` (``pip install "ncfd[metrics]"``).

Letters: N real and M synthetic samples, D features, F frequencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

try:
    from torchmetrics import Metric
except ImportError as error:  # pragma: no cover - the tests install it
    raise ImportError(
        'ncfd.metrics needs torchmetrics; install it with pip install "ncfd[metrics]"'
    ) from error

from ncfd import _phi, _samples, functional
from ncfd import _validation as check
from ncfd._devices import moved, widest_float
from ncfd._samples import Given

__all__ = ["NCFDMetric"]


class NCFDMetric(Metric):
    r"""Characteristic function discrepancy of two streams of samples, in the shape of FID and KID.

    .. math:: \frac1F \sum_f \sqrt{\mathrm{Chf}_\alpha(t_f)}

    of all real against all synthetic features seen since the last reset:
    :func:`ncfd.functional.ncfd_loss` of the whole. The state is a sum of cosines, one of sines and
    a count for each side, ``2 (2F + 1)`` numbers however many samples pass. They are summed over
    processes, so a distributed run gives the value of one process with all the data, to rounding.

    Beside FID it needs no D × D covariance, sees more than the first two moments, and (squared and
    unbiased) does not depend on the number of samples; beside KID it keeps no features and costs
    time linear in the samples. Its value depends on the frequencies: compare only values computed
    with the same ones.

    Args:
        frequencies: ``(F, D)``, in radians per unit of the features, the same in all processes; or
            a frequency sampler of this package, from which they are drawn once with ``seed``.
        feature_extractor: a module that maps the first argument of ``update`` to features
            ``(N, D)``; called as it is, without gradient: put it into evaluation mode before.
            Default: ``update`` takes features.
        normalize: scale every row of features to length 1 first.
        alpha: weight of amplitude against phase, in [0, 1].
        squared: leave out the root.
        unbiased: the U-statistic, whose mean does not depend on the number of samples; needs
            ``squared=True`` and ``alpha=0.5``, and can be negative.
        reset_real_features: whether ``reset`` forgets the real side too; False where the real
            samples are the same in each evaluation.
        seed: of a sampler's draw.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option out of range, or options that contradict each other.

    Example:
        >>> from ncfd import GaussianFrequencies
        >>> metric = NCFDMetric(GaussianFrequencies(dim=4, num_frequencies=64))
        >>> g = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     metric.update(torch.randn(100, 4, generator=g), real=True)
        ...     metric.update(torch.randn(50, 4, generator=g) + 1, real=False)
        >>> bool(metric.compute() > 0.1)
        True

    Source: Wang et al., *Dataset Distillation with Neural Characteristic Function*, CVPR 2025.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    frequencies: Tensor
    real_cos_sum: Tensor
    real_sin_sum: Tensor
    real_count: Tensor
    synthetic_cos_sum: Tensor
    synthetic_sin_sum: Tensor
    synthetic_count: Tensor
    frequencies_mark: Tensor
    update_mark: Tensor

    def __init__(
        self,
        frequencies: Tensor | nn.Module,
        *,
        feature_extractor: nn.Module | None = None,
        normalize: bool = False,
        alpha: float = 0.5,
        squared: bool = False,
        unbiased: bool = False,
        reset_real_features: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        seed = check.check_seed(seed)
        if isinstance(frequencies, nn.Module):
            with torch.no_grad():
                frequencies = frequencies(torch.Generator().manual_seed(seed))
        t = check.check_floating(frequencies, "frequencies").detach()
        if t.ndim != 2 or t.numel() == 0:
            raise ValueError(
                f"frequencies must have shape (F, D), not empty, got {check.describe(t)}"
            )
        if feature_extractor is not None and not isinstance(feature_extractor, nn.Module):
            raise TypeError(
                "feature_extractor must be a torch.nn.Module or None, got "
                f"{check.describe(feature_extractor)}"
            )
        self.feature_extractor = feature_extractor
        self.normalize = check.check_flag(normalize, "normalize")
        self.alpha = check.check_alpha(alpha)
        self.squared = check.check_flag(squared, "squared")
        self.unbiased = check.check_flag(unbiased, "unbiased")
        check.check_unbiased(self.unbiased, self.squared, self.alpha)
        self.reset_real_features = check.check_flag(reset_real_features, "reset_real_features")
        # Half types cannot hold a phase; a copy, because a later change would spoil the sums.
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        self.register_buffer("frequencies", t.to(dtype, copy=True))
        wide = widest_float(t.device)
        zeros = torch.zeros(len(t), dtype=wide, device=t.device)
        for side in ("real", "synthetic"):
            self.add_state(f"{side}_cos_sum", zeros.clone(), dist_reduce_fx="sum")
            self.add_state(f"{side}_sin_sum", zeros.clone(), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", zeros[0].clone(), dist_reduce_fx="sum")
        # A number that all entries of t enter. The maxima of it and of its negative over the
        # processes show whether all have the same frequencies.
        ramp = torch.arange(1, t.numel() + 1, dtype=wide, device=t.device)
        mark = (t.to(wide).flatten() * ramp).sum()
        self.add_state("frequencies_mark", torch.stack([mark, -mark]), dist_reduce_fx="max")
        # A MetricCollection lets metrics of equal states share their updates: those whose updates
        # differ must never be equal.
        key = repr((self.normalize, self.reset_real_features, id(feature_extractor))).encode()
        self.add_state("update_mark", torch.tensor([*hashlib.sha256(key).digest()]), "max")

    @torch.no_grad()
    def update(self, features: Tensor, real: bool) -> None:
        """Add samples to one side.

        Args:
            features: ``(N, D)``, floating point; or whatever ``feature_extractor`` takes.
            real: True for the real side, False for the synthetic one.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: features whose shape or device does not fit the frequencies.
        """
        real = check.check_flag(real, "real")
        if self.feature_extractor is not None:
            features = self.feature_extractor(features)
        given = Given("features", features, unit=self.normalize)
        samples, t = _samples.piece_of_stream(given, self.frequencies, None, "metric")
        [sums] = _phi.sums_of([samples], t)
        if real:
            self.real_cos_sum += sums.cos
            self.real_sin_sum += sums.sin
            self.real_count += sums.total
        else:
            self.synthetic_cos_sum += sums.cos
            self.synthetic_sin_sum += sums.sin
            self.synthetic_count += sums.total

    def compute(self) -> Tensor:
        """Discrepancy of everything added to the two sides.

        Returns:
            A scalar, float64 for float64 frequencies, else float32.

        Raises:
            ValueError: a side has too few samples, or the processes have different frequencies.
        """
        if self.frequencies_mark[0] > -self.frequencies_mark[1]:  # False of NaN, which shows
            raise ValueError(
                "the processes have different frequencies; pass the same tensor, or a sampler and "
                "the same seed, on all"
            )
        needed = 2 if self.unbiased else 1
        phis: list[Tensor] = []
        noise = torch.zeros_like(self.real_cos_sum)
        for name, cos_sum, sin_sum, total in (
            ("real", self.real_cos_sum, self.real_sin_sum, self.real_count),
            ("synthetic", self.synthetic_cos_sum, self.synthetic_sin_sum, self.synthetic_count),
        ):
            count = int(total)
            if count < needed:
                raise ValueError(
                    f"the {name} side needs at least {needed} samples, got {count}; call "
                    f"update(features, real={name == 'real'}) before compute()"
                )
            phis.append(torch.complex(cos_sum, sin_sum) / count)
            # By which chance raises ½|φ̂ - φ|²; exact, so that its removal leaves no bias.
            noise = noise + 0.5 * (1 - phis[-1].abs().square()) / max(count - 1, 1)
        value = functional.cf_discrepancy(*phis, alpha=self.alpha)
        if self.unbiased:
            value = value - noise
        elif not self.squared:
            value = value.sqrt()
        return value.mean().to(self.frequencies.dtype)

    def forward(self, features: Tensor, real: bool) -> Tensor:
        """Add samples to one side, and return the value of this batch.

        Of the real side so far against this batch with ``reset_real_features=False``, else of the
        batch alone, which has one side only and raises once it is added.

        Args:
            features: as in ``update``.
            real: likewise.

        Returns:
            A scalar.

        Raises:
            ValueError: a side has too few samples for a value. What was added stays.
        """
        names = [*self._defaults]
        before = {name: getattr(self, name) for name in names}
        sums = [name for name in names if not name.endswith("mark")]
        for name in sums:
            setattr(self, name, torch.zeros_like(before[name]))
        try:
            self.update(features, real)
        except BaseException:
            for name in names:
                setattr(self, name, before[name])
            raise
        whole = {name: before[name] + getattr(self, name) for name in sums}
        if not self.reset_real_features:
            for name in ("real_cos_sum", "real_sin_sum", "real_count"):
                setattr(self, name, whole[name])
        self._to_sync = self.dist_sync_on_step
        try:
            value: Tensor = self.compute()
        finally:
            for name in sums:
                setattr(self, name, whole[name])
            self._computed = None
            self._to_sync = self.sync_on_compute
        self._forward_cache = value  # type: ignore[assignment]  # None at the start
        return value

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Self:
        # Only the device is taken over. A cast of the module around leaves the frequencies and
        # the sums alone: they belong together.
        t = self.frequencies
        device = fn(t.new_empty(0)).device
        states = {k: v for k, v in self._defaults.items() if isinstance(v, Tensor)}  # all of them
        starts = {name: moved(value, device) for name, value in states.items()}
        sums = {name: moved(getattr(self, name), device) for name in starts}
        self._hold(sums, starts)  # before, because fn moves them as they are, and again after it
        super()._apply(fn, exclude_state)
        self._hold(sums, starts)
        self.frequencies = t.to(device)
        return self

    def _hold(self, sums: dict[str, Tensor], starts: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            setattr(self, name, value)
            self._defaults[name] = starts[name]

    def reset(self) -> None:
        """Forget all samples, or all synthetic ones with ``reset_real_features=False``."""
        kept = (self.real_cos_sum, self.real_sin_sum, self.real_count)
        super().reset()
        if not self.reset_real_features:
            self.real_cos_sum, self.real_sin_sum, self.real_count = kept
