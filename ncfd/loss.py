"""``NCFDLoss``: the discrepancy as a module, with its frequencies and its options."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ncfd import _processes, functional
from ncfd import _validation as check
from ncfd._samples import Given

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
        normalize: scale every row of both sides to length 1 first. A ``Distribution`` or known φ
            as the real side is taken to be that of such rows already.
        squared: leave out the root.
        unbiased: the U-statistic; needs ``squared=True`` and ``alpha=0.5``.
        adversarial: reverse the gradient that reaches the sampler.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        process_group: processes whose parts make up the batch, as in
            :func:`ncfd.functional.ncfd_loss`. All draw the same frequencies: a ``sampler`` that
            takes a ``generator`` is called with one that is in step on all processes, seeded in the
            first ``forward`` from the first process's default generator; that generator is not in
            the ``state_dict``. Wrap the sampler, or this module, in ``DistributedDataParallel``
            like the network. Build the loss after ``init_process_group``: before it,
            ``torch.distributed.group.WORLD`` is None, which means no communication.

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
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.alpha = check.check_alpha(alpha)
        self.normalize = check.check_flag(normalize, "normalize")
        self.squared = check.check_flag(squared, "squared")
        self.unbiased = check.check_flag(unbiased, "unbiased")
        self.adversarial = check.check_flag(adversarial, "adversarial")
        self.reduction = check.check_reduction(reduction)
        check.check_unbiased(self.unbiased, self.squared, self.alpha)
        self.process_group = _processes.check_group(process_group)
        self._generator: torch.Generator | None = None  # in step on all processes
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

        Args:
            real: samples ``(*, N, D)``, a ``Distribution``, or a known φ.
            synthetic: samples ``(*, M, D)``.
            real_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with
                ``synthetic_groups``.
            synthetic_groups: integer labels ``(M,)``.
            num_groups: G; required with labels.
            real_weights: ``(*, N)``, non-negative, not all zero.
            synthetic_weights: ``(*, M)``, likewise.

        Returns:
            A scalar; shape ``*`` with batch dimensions; ``(*, F)`` or ``(G, F)`` unreduced.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: shapes, labels or weights that do not fit each other or the frequencies.
        """
        t = self.frequencies
        if self.sampler is not None:
            t = self._draw(self.sampler, synthetic)
            if self.adversarial:
                t = functional.gradient_reversal(t)
        assert t is not None  # one of the two was set by the constructor
        return functional.discrepancy(
            Given("real", real, real_weights, real_groups, self.normalize),
            Given("synthetic", synthetic, synthetic_weights, synthetic_groups, self.normalize),
            t,
            functional.Form(self.alpha, self.squared, self.unbiased, self.reduction),
            num_groups=num_groups,
            process_group=self.process_group,
            name_of_t="t, given by sampler,",
        )

    def _draw(self, sampler: nn.Module, like: Tensor) -> Tensor:
        """Frequencies, the same on all processes."""
        arguments = {}
        if self.process_group is not None and _takes_generator(sampler):
            if self._generator is None:
                self._generator = _processes.common_generator(self.process_group, like.device)
            arguments["generator"] = self._generator
        t: Tensor = sampler(**arguments)
        return t

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A process group is a connection: the copy talks over the same one.
        memo[id(self.process_group)] = self.process_group
        other = self.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            # Dropped in silence, it would turn the loss into that of one process's part.
            raise TypeError(
                "an NCFDLoss with a process_group cannot be pickled; store its state_dict, or set "
                "loss.process_group = None first"
            )
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules stored by earlier versions know no processes.
        # Torch's own `__setstate__` is without annotations.
        super().__setstate__({"process_group": None, "_generator": None} | state)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        fixed = "" if self.frequencies is None else f"frequencies={tuple(self.frequencies.shape)}, "
        return (
            f"{fixed}alpha={self.alpha:g}, normalize={self.normalize}, squared={self.squared}, "
            f"unbiased={self.unbiased}, adversarial={self.adversarial}, "
            f"reduction={self.reduction!r}"
        )


def _takes_generator(sampler: nn.Module) -> bool:
    if isinstance(sampler, nn.parallel.DistributedDataParallel):
        sampler = sampler.module
    return "generator" in inspect.signature(sampler.forward).parameters
