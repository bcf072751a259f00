"""What all samplers share: sizes, the call, and a scale bounded around its start.

Letters: D features, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ncfd import _validation as check

#: A step of a raw scale multiplies a scale by 4 to that step, or by less within narrower bounds.
_PACE = math.log(4)


class _Frequencies(nn.Module):
    """Sizes and the scale; subclasses draw."""

    base_scale: Tensor
    spread = 0.0  # of modules stored by earlier versions

    def __init__(
        self,
        dim: int,
        num_frequencies: int,
        scale: float | Tensor,
        max_ratio: float,
        spread: float,
    ) -> None:
        super().__init__()
        self.dim = check.check_count(dim, "dim")
        self.num_frequencies = check.check_count(num_frequencies, "num_frequencies")
        self.max_ratio = check.check_positive(max_ratio, "max_ratio")
        if self.max_ratio <= 1:
            raise ValueError(f"max_ratio must be greater than 1, got {max_ratio}")
        self.spread = check.check_between(spread, "spread", 0, 10)
        self.register_buffer("base_scale", self._checked_scale(scale))  # (D,)

    def _checked_scale(self, scale: float | Tensor) -> Tensor:
        if isinstance(scale, Tensor):
            value = check.check_floating(scale, "scale").detach().clone()
            if value.shape not in ((), (self.dim,)):
                raise ValueError(
                    f"scale must be a number or have shape ({self.dim},), "
                    f"got {check.describe(scale)}"
                )
            if value.is_meta:
                raise ValueError(f"scale must have values, got {check.describe(scale)}")
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError("scale must be positive and finite in every entry")
            value = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)
        else:
            dtype = torch.float32
            value = torch.tensor(check.check_positive(scale, "scale", dtype), dtype=dtype)
        return value.expand(self.dim).clone()

    def _bounded(self, raw: Tensor) -> Tensor:
        """A scale for each entry of ``raw``: ``scale`` at 0, within a factor ``max_ratio`` of it.

        ``scale · max_ratio ** tanh(raw)``, but a wide bound does not make the steps longer: an
        optimizer's step of ``raw`` is the same factor near the start for every ratio from 4 on.
        """
        bound = math.log(self.max_ratio)
        return self.base_scale * torch.exp(bound * torch.tanh(min(1.0, _PACE / bound) * raw))

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw frequencies.

        Args:
            generator: on the CPU, or on the module's device. Default: PyTorch's own.

        Returns:
            ``(F, D)`` on the module's device.
        """
        check.check_generator(generator, self.base_scale.device)
        return self._sample(generator)

    def _sample(self, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # ``.to``, ``.half``, ``.cuda`` and the like all pass here. Half types hold neither a scale
        # of 1e-8 nor the steps by which one is learned: then only the device is taken over.
        def wide(value: Tensor) -> Tensor:
            applied = fn(value)
            is_half = applied.is_floating_point() and applied.itemsize < 4
            return value.to(applied.device) if is_half else applied

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self
