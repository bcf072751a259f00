"""``NCFDLoss``: the discrepancy as a module, with its frequencies and its options."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Never, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ncfd import _processes, _samples, functional
from ncfd import _validation as check
from ncfd._phi import Phi
from ncfd._samples import Given

__all__ = ["NCFDLoss"]

#: What a sampler may ascend; or None.
ADVERSARIES = ("signal", "loss")

#: A mean over frequencies is beyond the noise from this many of its deviations on; with fewer
#: frequencies than this many these are more than half of the noise, and say nothing.
_NOISE, _ENOUGH = 3.0, 36

#: Every how many calls it is looked for: it comes and goes slowly, and small calls feel the look.
_EVERY = 16


class NCFDLoss(_processes.InStep):
    r"""Characteristic function discrepancy between real and synthetic features.

    ``forward`` draws frequencies from ``sampler`` and returns
    :func:`ncfd.functional.ncfd_loss`. One ``backward()`` gives the features the gradient that
    lowers the loss and the sampler's parameters the gradient that raises what the ``adversary`` is
    paid for, so that an ordinary optimizer step moves each player its own way. The value is the
    loss in every case.

    ================================================  =====================================
    your loop                                         set
    ================================================  =====================================
    one ``backward()``, one step of all parameters    ``adversary="signal"`` (or ``"loss"``)
    two steps, the sampler in that on minus the loss  ``adversary=None``
    two steps, the sampler in that on the loss        ``adversary="signal"`` (or ``"loss"``)
    fixed frequencies                                 nothing: there is no adversary
    ================================================  =====================================

    In the third row clear the sampler's gradient before the ``backward()`` of the loss: that of
    minus the loss has left one of the other sign.

    Args:
        sampler: a module whose call returns ``(F, D)`` frequencies, or a fixed ``(F, D)`` tensor
            (kept as a buffer).
        alpha: weight of amplitude against phase, in [0, 1].
        normalize: scale every row of both sides to length 1 first. A ``Distribution`` or known φ
            as the real side is taken to be that of such rows already.
        squared: leave out the root.
        unbiased: the U-statistic; needs ``squared=True`` and ``alpha=0.5``.
        adversary: what the sampler's parameters ascend. ``"signal"``:
            :func:`ncfd.functional.signal_discrepancy`, which vanishes where a real sample of this
            size shows nothing but noise, so that the frequencies do not run away. ``"loss"``: the
            loss itself, as published. None: they get the loss's plain gradient and descend, for
            loops that step the critic apart on minus the loss. Under ``"signal"`` it warns once of
            frequencies at which the real samples show nothing but noise (on the CPU, looked for in
            the first call and every 16th after it): there is no slope there, and an optimizer like
            Adam walks at random.
        frequency_weights: ``(F,)``, as in :func:`ncfd.functional.ncfd_loss` (kept as a buffer).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over frequencies and groups. Leading
            dimensions of the samples stay: each set is a comparison of its own, so ``(V, N, D)``
            gives V values under ``"mean"`` too, and a scalar loss is their ``.mean()``.
        process_group: processes whose parts make up the batch, as in
            :func:`ncfd.functional.ncfd_loss`. All draw the same frequencies: a ``sampler`` that
            takes a ``generator`` is called with one that is in step on all processes, seeded in the
            first ``forward`` from the first process's default generator; that generator is not in
            the ``state_dict``. Wrap the sampler, or this module, in ``DistributedDataParallel``
            like the network. Build the loss after ``init_process_group``: before it,
            ``torch.distributed.group.WORLD`` is None, which means no communication.

        **renamed: nothing; an option under a name it had before is an error that tells today's.

    Raises:
        TypeError: an option of the wrong type, or unknown.
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

    _told_of_noise = False
    _calls = 0  # in which it could be looked for

    def __init__(
        self,
        sampler: nn.Module | Tensor,
        *,
        alpha: float = 0.5,
        normalize: bool = False,
        squared: bool = False,
        unbiased: bool = False,
        adversary: Literal["signal", "loss"] | None = "signal",
        frequency_weights: Tensor | None = None,
        reduction: str = "mean",
        process_group: torch.distributed.ProcessGroup | None = None,
        **renamed: Never,
    ) -> None:
        super().__init__(process_group)
        if "adversarial" in renamed:
            raise TypeError(
                'adversarial is now adversary: "loss" for True, None for False; the default, '
                '"signal", pays the sampler for signal'
            )
        if renamed:
            raise TypeError(f"NCFDLoss has no argument {next(iter(renamed))!r}")
        self.alpha = check.check_alpha(alpha)
        self.normalize = check.check_flag(normalize, "normalize")
        self.squared = check.check_flag(squared, "squared")
        self.unbiased = check.check_flag(unbiased, "unbiased")
        if adversary is not None:
            check.check_one_of(adversary, "adversary", ADVERSARIES)
        self.adversary = adversary
        self.reduction = check.check_reduction(reduction)
        check.check_unbiased(self.unbiased, self.squared, self.alpha)
        self.frequency_weights: Tensor | None
        if frequency_weights is not None:
            frequency_weights = check.check_floating(frequency_weights, "frequency_weights")
            frequency_weights = frequency_weights.detach().clone()
        self.register_buffer("frequency_weights", frequency_weights, persistent=False)
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
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Discrepancy between ``real (*, N, D)`` and ``synthetic (*, M, D)``.

        The arguments are those of :func:`ncfd.functional.ncfd_loss`: ``real`` is its ``x``, which
        may be a ``Distribution`` or, with fixed frequencies, an already known φ. Neither side is
        detached: pass ``real`` without gradient where it should have none.

        Args:
            real: samples ``(*, N, D)``, a ``Distribution``, or a known φ. Feature maps
                ``(N, C, H, W)`` are samples as ``real.flatten(1)``; as they are they count as
                ``N·C`` sets.
            synthetic: samples ``(*, M, D)``, likewise.
            real_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with
                ``synthetic_groups``.
            synthetic_groups: integer labels ``(M,)``.
            num_groups: G; required with labels.
            real_weights: ``(*, N)``, non-negative, not all zero.
            synthetic_weights: ``(*, M)``, likewise.
            t: frequencies ``(F, D)`` to use in place of the sampler's, with their gradient as it
                would reach the sampler.
            generator: of the sampler's draw. Default: PyTorch's own, or with a ``process_group``
                the one in step on all processes.

        Returns:
            A scalar; shape ``*`` with batch dimensions; ``(*, F)`` or ``(G, F)`` unreduced.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: shapes, labels or weights that do not fit each other or the frequencies.
        """
        sides = (
            Given("real", real, real_weights, real_groups, self.normalize),
            Given("synthetic", synthetic, synthetic_weights, synthetic_groups, self.normalize),
        )
        name_of_t = "t (given by sampler)" if t is None else "t"
        if t is None and self.sampler is None:
            t = self.frequencies
        elif t is None and self.sampler is not None:
            t, sides = self._draw(self.sampler, sides, num_groups, generator)
        t = check.check_floating(t, "t")
        plays = self.adversary is not None and t.requires_grad
        if plays and self.adversary == "loss":
            t = functional.gradient_reversal(t)
        return functional.discrepancy(
            *sides,
            t,
            functional.Form(
                self.alpha, self.squared, self.unbiased, self.reduction, self.frequency_weights
            ),
            num_groups=num_groups,
            process_group=self.process_group,
            name_of_t=name_of_t,
            pays_signal=self._look_at_signal if plays and self.adversary == "signal" else None,
        )

    def _look_at_signal(self, real: Phi) -> None:
        """Warn, once, of frequencies at which the real side shows nothing beyond its noise.

        Not on an accelerator, which would have to be waited for.
        """
        if self._told_of_noise or not check.values_visible(real.re):
            return
        self._calls += 1
        if self._calls % _EVERY != 1:
            return
        square = (real.re.square() + real.im.square()).detach()
        share = torch.as_tensor(real.share).detach().to(square).expand_as(square)
        # Where φ is known there is no noise, and one row does not say how much there is.
        counts = (share > 0) & (share < 1)
        noise = share[counts]
        if len(noise) < _ENOUGH:
            return
        # Of noise, |φ̂|² is exponential with mean and deviation 1/N.
        chance = noise.square().mean().sqrt() / len(noise) ** 0.5
        if not bool((square[counts] - noise).mean() <= _NOISE * chance):
            return
        self._told_of_noise = True
        warnings.warn(
            f"at these {square.shape[-1]} frequencies the real samples show nothing but noise: "
            "what the adversary follows is chance, by which many learned scales walk outwards. "
            "Begin lower (scale='median'), learn one factor of a fixed law (learnable='one') or "
            "lower the sampler's learning rate; see frequency_report(x, t)",
            stacklevel=2,
        )

    def _draw(
        self,
        sampler: nn.Module,
        sides: tuple[Given, Given],
        num_groups: int | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, tuple[Given, Given]]:
        """Frequencies, the same on all processes, and the sides in their unit."""
        real, synthetic = sides
        takes = _arguments(sampler)
        arguments: dict[str, Any] = {}
        if generator is not None:
            arguments["generator"] = generator
        elif self.process_group is not None and "generator" in takes:
            device = check.check_tensor(synthetic.x, "synthetic").device
            arguments["generator"] = self._generator_in_step(device)
        if "real" in takes:
            if _relative(sampler):
                sides = _samples.in_unit_of_real(real, synthetic, num_groups, self.process_group)
                arguments["rows_scaled"] = True
            if real.is_known() is None:
                arguments["real"] = sides[0].x
        t: Tensor = sampler(**arguments)
        return t, sides

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules stored by earlier versions know no processes.
        defaults: dict[str, Any] = {
            "process_group": None,
            "_generator": None,
            "frequency_weights": None,
        }
        if "adversarial" in state:
            defaults["adversary"] = "loss" if state["adversarial"] else None
        # Torch's own `__setstate__` is without annotations.
        super().__setstate__(defaults | state)  # type: ignore[no-untyped-call]  # PyTorch has no type there

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Half types cannot hold a frequency, and a stored φ belongs to these.
        held = {name: getattr(self, name) for name in ("frequencies", "frequency_weights")}
        # Torch's own `_apply` is without annotations.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch has no type there
        for name, value in held.items():
            cast = getattr(self, name)
            if value is not None and cast.dtype not in (torch.float32, torch.float64):
                wide = torch.float64 if value.dtype == torch.float64 else torch.float32
                setattr(self, name, value.to(cast.device, wide))
        return self

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        fixed = "" if self.frequencies is None else f"frequencies={tuple(self.frequencies.shape)}, "
        return (
            f"{fixed}alpha={self.alpha:g}, normalize={self.normalize}, squared={self.squared}, "
            f"unbiased={self.unbiased}, adversary={self.adversary!r}, "
            f"reduction={self.reduction!r}"
        )


def _inside(sampler: nn.Module) -> Iterator[nn.Module]:
    """The sampler, and what it wraps: DistributedDataParallel, a compiled or averaged module."""
    yield sampler
    for name in ("module", "_orig_mod"):
        inner = getattr(sampler, name, None)
        if isinstance(inner, nn.Module):
            yield from _inside(inner)


def _arguments(sampler: nn.Module) -> set[str]:
    """What the forward of the innermost module takes, which wrappers pass on."""
    *_, innermost = _inside(sampler)
    return {*inspect.signature(innermost.forward).parameters}


def _relative(sampler: nn.Module) -> bool:
    """Whether its frequencies are in the unit of the real side of each call."""
    return any(getattr(module, "relative", False) is True for module in _inside(sampler))
