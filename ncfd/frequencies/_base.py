"""What all samplers share: sizes, the call, and a scale bounded around its start.

Letters: D features, F frequencies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ncfd import _validation as check
from ncfd._median import inverse_median_distance
from ncfd.frequencies import _draws as draws

#: A step of a raw scale multiplies a scale by 4 to that step, or by less within narrower bounds.
_PACE = math.log(4)

#: A scale beyond this share of the logarithm of its bound is at it.
_AT_BOUND = 0.95


class _Frequencies(nn.Module):
    """Sizes and the scale; subclasses draw.

    With ``dim=None`` the scale is ``()`` until the first call tells D, then ``(D,)``.
    """

    base_scale: Tensor
    relative = False  # of modules stored by earlier versions
    #: How many uniform numbers a row takes beside one for each feature.
    _more_dims = 0

    def __init__(
        self,
        dim: int | None,
        num_frequencies: int,
        scale: float | Tensor | str,
        method: str,
        methods: tuple[str, ...] = draws.METHODS,
    ) -> None:
        super().__init__()
        self.method = check.check_one_of(method, "method", methods)
        self.dim = None if dim is None else check.check_count(dim, "dim")
        self.num_frequencies = check.check_count(num_frequencies, "num_frequencies")
        #: Whether ``scale`` counts in one over the median distance of the real rows.
        self.relative = isinstance(scale, str)
        if self.relative:
            if scale != "median":
                raise TypeError(f"scale must be a number, a tensor or 'median', got {scale!r}")
            scale = 1.0
        self.register_buffer("base_scale", self._checked_scale(scale))
        if self.dim is not None or self.base_scale.ndim == 1:
            self._settle(self.dim or len(self.base_scale))

    def _checked_scale(self, scale: object) -> Tensor:
        if not isinstance(scale, Tensor):
            dtype = torch.float32
            return torch.tensor(check.check_positive(scale, "scale", dtype), dtype=dtype)
        value = check.check_floating(scale, "scale").detach().clone()
        if value.shape not in ((), (self.dim or max(1, value.numel()),)):
            wanted = "(D,)" if self.dim is None else f"({self.dim},)"
            raise ValueError(
                f"scale must be a number or have shape {wanted}, got {check.describe(scale)}"
            )
        if value.is_meta:
            raise ValueError(f"scale must have values, got {check.describe(scale)}")
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError("scale must be positive and finite in every entry")
        return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)

    def _settle(self, dim: int, device: torch.device | None = None) -> None:
        """From now on there are ``dim`` features."""
        if self.method == "sobol" and dim + self._more_dims > draws.SOBOL_DIMS:
            raise ValueError(
                f"method='sobol' covers at most {draws.SOBOL_DIMS} dimensions, got dim={dim}; "
                "use 'orthogonal'"
            )
        self.dim = dim
        self.base_scale = self.base_scale.to(device).expand(dim).clone()

    def forward(
        self,
        generator: torch.Generator | None = None,
        *,
        real: Tensor | None = None,
        rows_scaled: bool = False,
    ) -> Tensor:
        """Draw frequencies.

        Args:
            generator: on the CPU, or on the module's device. Default: PyTorch's own.
            real: the real samples of the call, ``(N, D)`` or ``(*, N, D)``. Needed in the first
                call with ``dim=None``, and in every call with ``scale="median"``.
            rows_scaled: with ``scale="median"``, leave out the factor, one over the median
                distance: the caller multiplies the rows of both sides by it instead. So does
                :class:`ncfd.NCFDLoss`, which has a factor for each group.

        Returns:
            ``(F, D)`` on the module's device; ``(*, F, D)`` with ``scale="median"`` and a batch of
            real samples, each set with its own factor.

        Raises:
            TypeError: ``generator`` or ``real`` of the wrong type.
            ValueError: ``real`` is missing, or of another number of features.
        """
        if real is not None:
            self._meet(check.check_samples(real, "real", part=True))
        dim = self._known_dim()
        check.check_generator(generator, self.base_scale.device)
        t = self._sample(dim, generator)
        if not self.relative or rows_scaled:
            return t
        if real is None:
            raise ValueError(
                "scale='median' counts in the distances of the real samples: call the sampler "
                "with real=samples, as NCFDLoss does, or pass a number"
            )
        return inverse_median_distance(real).to(t.device)[..., None, None] * t

    def _known_dim(self) -> int:
        if self.dim is None:
            raise ValueError(
                "dim=None is learned from the real samples of the first call: call the sampler "
                "with real=samples, as NCFDLoss does, or name dim"
            )
        return self.dim

    def _meet(self, real: Tensor) -> None:
        """Learn D from the first samples, and hold others to it."""
        if self.dim is None:
            if real.ndim > 3:  # more often feature maps than a batch of batches
                raise ValueError(
                    "dim=None is learned from samples (N, D) or (B, N, D), got "
                    f"{check.describe(real)}{check.as_rows(real, 'real')}; or name dim"
                )
            self._settle(real.shape[-1], real.device)
        elif real.shape[-1] != self.dim:
            raise ValueError(
                f"real must have {self.dim} features like the frequencies, "
                f"got {check.describe(real)}{check.as_rows(real, 'real')}"
            )

    def _sample(self, dim: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError  # each sampler has its own

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "base_scale")
        if isinstance(stored, Tensor):
            if self.dim is None and stored.ndim == 1:
                self._settle(len(stored))
            elif self.dim is not None and stored.ndim == 0:  # stored before its first call
                state_dict = dict(state_dict) | {prefix + "base_scale": stored.expand(self.dim)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # ``.to``, ``.half``, ``.cuda`` and the like all pass here. Half types hold neither a scale
        # of 1e-8 nor the steps by which one is learned: then only the device is taken over.
        def wide(value: Tensor) -> Tensor:
            applied = fn(value)
            is_half = applied.is_floating_point() and applied.itemsize < 4
            return value.to(applied.device) if is_half else applied

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        relative = ", scale='median'" if self.relative else ""
        return (
            f"dim={self.dim}, num_frequencies={self.num_frequencies}, "
            f"method={self.method!r}{relative}"
        )


class _Scaled(_Frequencies):
    """ψ and the fixed laws: a scale that is learned within bounds, or spread."""

    spread = 0.0  # of modules stored by earlier versions
    _told_of_bound = False

    def __init__(
        self,
        dim: int | None,
        num_frequencies: int,
        scale: float | Tensor | str,
        method: str,
        methods: tuple[str, ...],
        max_ratio: float,
        spread: float,
    ) -> None:
        super().__init__(dim, num_frequencies, scale, method, methods)
        self.max_ratio = check.check_positive(max_ratio, "max_ratio")
        if self.max_ratio <= 1:
            raise ValueError(f"max_ratio must be greater than 1, got {max_ratio}")
        self.spread = check.check_between(spread, "spread", 0, 10)

    @classmethod
    def like(cls, features: Tensor, num_frequencies: int = 1024, **options: Any) -> Self:
        """Build a sampler for such features: their number, on their device.

        ψ and a learned scale have parameters. They have to exist before the optimizer and its
        scheduler are built, so call this with a first batch before that.

        Args:
            features: ``(*, N, D)``; nothing but the last size and the device is read.
            num_frequencies: F, how many are drawn.
            **options: those of the constructor.

        Returns:
            The sampler, on the device of the features.

        Raises:
            TypeError: ``features`` is not a floating-point tensor.
            ValueError: ``features`` have fewer than two dimensions.
        """
        dim = check.check_samples(features, "features", part=True).shape[-1]
        build: Callable[..., Self] = cls
        return build(dim, num_frequencies, **options).to(features.device)

    def _bounded(self, raw: Tensor) -> Tensor:
        """A scale for each entry of ``raw``: ``scale`` at 0, within a factor ``max_ratio`` of it.

        ``scale · max_ratio ** tanh(raw)``, but a wide bound does not make the steps longer: an
        optimizer's step of ``raw`` is the same factor near the start for every ratio from 4 on.
        """
        bound = math.log(self.max_ratio)
        place = torch.tanh(min(1.0, _PACE / bound) * raw)
        if not self._told_of_bound and torch.is_grad_enabled() and check.values_visible(place):
            self._look_at_bound(place.detach())
        return self.base_scale * torch.exp(bound * place)

    def _look_at_bound(self, place: Tensor) -> None:
        """Warn, once, of scales of which most have gone as far as they may.

        Not on an accelerator, which would have to be waited for.
        """
        share = (place.abs() > _AT_BOUND).double().mean().item()
        if share <= 0.5:
            return
        self._told_of_bound = True
        high = (place > _AT_BOUND).double().mean().item() > 0.5 * share
        side, way_out = (
            (
                "above",
                "an adversary that ascends the loss runs away where there is nothing but noise",
            )
            if high
            else ("below", "where there is no signal at the start, an adversary finds no way")
        )
        warnings.warn(
            f"{share:.0%} of the scales of {type(self).__name__} are at their bound, most of them "
            f"{side} scale by the factor max_ratio = {self.max_ratio:g}: {way_out}; see "
            "frequency_report(x, t), begin nearer to the data (scale='median'), use "
            "adversary='signal' or a lower learning rate, or raise max_ratio",
            stacklevel=2,
        )

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return f"{super().extra_repr()}, spread={self.spread:g}"
