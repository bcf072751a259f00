"""``NCFDLoss``: the discrepancy as a module, with its frequencies and its options."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from ncfd import _validation as check
from ncfd import functional

__all__ = ["NCFDLoss"]


class NCFDLoss(nn.Module):
    r"""Characteristic function discrepancy between real and synthetic features.

    ``forward`` draws frequencies from ``sampler`` and returns
    :func:`ncfd.functional.ncfd_loss`. With ``adversarial=True`` one ``backward()`` gives the
    features the gradient that lowers the loss and the sampler's parameters the gradient that raises
    it, so that an ordinary optimizer step moves each player its own way.

    Args:
        sampler: a module whose call returns ``(F, D)`` frequencies, or a fixed ``(F, D)`` tensor
            (kept as a buffer).
        alpha: weight of amplitude against phase, in [0, 1].
        normalize: scale every row of both sides to length 1 first.
        squared: leave out the root.
        unbiased: the U-statistic; needs ``squared=True`` and ``alpha=0.5``.
        adversarial: reverse the gradient that reaches the sampler.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option out of range, or options that contradict each other.

    Example:
        >>> import torch
        >>> from ncfd import FrequencySampler
        >>> loss = NCFDLoss(FrequencySampler(dim=8, num_frequencies=64))
        >>> real, synthetic = torch.randn(32, 8), torch.randn(16, 8, requires_grad=True)
        >>> loss(real, synthetic).backward()
        >>> synthetic.grad.shape
        torch.Size([16, 8])

    Source: Wang et al., *Dataset Distillation with Neural Characteristic Function*, CVPR 2025; one
    backward for both players is this package's.
    """

    def __init__(
        self,
        sampler: nn.Module | Tensor,
        *,
        alpha: float = 0.5,
        normalize: bool = False,
        squared: bool = False,
        unbiased: bool = False,
        adversarial: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.alpha = check.check_alpha(alpha)
        self.normalize = check.check_flag(normalize, "normalize")
        self.squared = check.check_flag(squared, "squared")
        self.unbiased = check.check_flag(unbiased, "unbiased")
        self.adversarial = check.check_flag(adversarial, "adversarial")
        self.reduction = check.check_reduction(reduction)
        check.check_unbiased(self.unbiased, self.squared, self.alpha)
        self.sampler: nn.Module | None
        self.frequencies: Tensor | None
        if isinstance(sampler, nn.Module):
            self.sampler = sampler
            self.register_buffer("frequencies", None)
        elif isinstance(sampler, Tensor):
            fixed = check.check_floating(sampler, "sampler")
            if fixed.ndim != 2 or 0 in fixed.shape:
                raise ValueError(
                    f"sampler, as fixed frequencies, must have shape (F, D), "
                    f"got {check.describe(fixed)}"
                )
            self.sampler = None
            self.register_buffer("frequencies", fixed.detach().clone())
        else:
            raise TypeError(
                "sampler must be a module returning (F, D) frequencies or a tensor of them, "
                f"got {check.describe(sampler)}"
            )

    def forward(
        self,
        real: Tensor | Distribution,
        synthetic: Tensor,
        *,
        real_groups: Tensor | None = None,
        synthetic_groups: Tensor | None = None,
        num_groups: int | None = None,
        real_weights: Tensor | None = None,
        synthetic_weights: Tensor | None = None,
    ) -> Tensor:
        """Discrepancy between ``real (*, N, D)`` and ``synthetic (*, M, D)``.

        The arguments are those of :func:`ncfd.functional.ncfd_loss`: ``real`` is its ``x``, which
        may be a ``Distribution`` or, with fixed frequencies, an already known φ. Neither side is
        detached: pass ``real`` without gradient where it should have none.

        Returns:
            A scalar; shape ``*`` with batch dimensions; ``(*, F)`` or ``(G, F)`` unreduced.
        """
        t = self.frequencies
        if self.sampler is not None:
            t = self.sampler()
            if self.adversarial:
                t = functional.gradient_reversal(t)
        assert t is not None  # one of the two was set by the constructor
        if self.normalize:
            synthetic = functional.unit_rows(synthetic, "synthetic")
            if not (
                isinstance(real, Distribution) or (isinstance(real, Tensor) and real.is_complex())
            ):
                real = functional.unit_rows(real, "real")
        return functional.ncfd_loss(
            real,
            synthetic,
            t,
            alpha=self.alpha,
            squared=self.squared,
            unbiased=self.unbiased,
            reduction=self.reduction,
            x_groups=real_groups,
            y_groups=synthetic_groups,
            num_groups=num_groups,
            x_weights=real_weights,
            y_weights=synthetic_weights,
        )

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        fixed = "" if self.frequencies is None else f"frequencies={tuple(self.frequencies.shape)}, "
        return (
            f"{fixed}alpha={self.alpha:g}, normalize={self.normalize}, squared={self.squared}, "
            f"unbiased={self.unbiased}, adversarial={self.adversarial}, "
            f"reduction={self.reduction!r}"
        )
