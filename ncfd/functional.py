"""The mathematics: characteristic functions from samples, and the discrepancy between two.

Letters used throughout: N and M samples, D features, F frequencies, G groups (classes), K
components of a mixture, ``*`` leading batch dimensions.

    samples, frequencies --> sums of cos and sin --> φ --> Chf_α --> loss

What callers give is checked in :mod:`ncfd._samples`; the sums and their φ come from
:mod:`ncfd._phi`; here are the formulas. Inside, a complex number is a pair of real tensors; complex
tensors appear only in the public functions. The closed form, :func:`gaussian_ncfd`, is in
:mod:`ncfd.kernel`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from ncfd import _phi, _processes, _samples
from ncfd import _validation as check
from ncfd._phi import Phi, Sums
from ncfd._roots import RootOfHalf, eager, modulus, root, safe_root
from ncfd._samples import Given
from ncfd.distributions import closed_form
from ncfd.kernel import gaussian_ncfd
from ncfd.sliced import sliced_normality

__all__ = [
    "amplitude_phase",
    "cf_discrepancy",
    "characteristic_function",
    "gaussian_ncfd",
    "gradient_reversal",
    "ncfd_loss",
    "safe_root",
    "signal_discrepancy",
    "sliced_normality",
]


# ------------------------------------------------------------------------------------------------
# φ
# ------------------------------------------------------------------------------------------------


def characteristic_function(
    x: Tensor | Distribution,
    t: Tensor,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Empirical characteristic function of samples, or the closed form of a distribution.

    .. math:: \hat\varphi(t) = \sum_n w_n e^{i\langle t, x_n\rangle} \Big/ \sum_n w_n

    Args:
        x: samples ``(*, N, D)``, floating point; or a ``torch.distributions.Distribution`` with
            batch shape ``*`` and D the size of its event (1 for a scalar), for its exact φ.
        t: frequencies ``(F, D)``, or ``(*, F, D)`` for one set per batch entry, in radians per
            unit of ``x``.
        weights: ``(*, N)``, non-negative, not all zero; normalised here. Default: all equal.
        groups: integer labels ``(N,)`` in ``[0, num_groups)``: one φ per group, in one pass.
        num_groups: G, required with ``groups``.
        chunk_size: rows of ``x`` whose phases are held at once. Default: as many as
            ``ncfd.ops.BUDGET`` allows. The value changes by rounding only.

    Returns:
        Complex ``(*, F)``, or ``(G, F)`` with groups; zeros for a group without samples.
        ``complex64``, or ``complex128`` if an input is float64 (half types compute in float32).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, labels out of range, negative or all-zero weights.

    Example:
        >>> x = torch.tensor([[0.0], [torch.pi]])
        >>> phi = characteristic_function(x, torch.tensor([[0.0], [1.0], [2.0]]))
        >>> phi.abs().round(decimals=6)
        tensor([1., 0., 1.])

    Source: Feuerverger & Mureika, *The empirical characteristic function and its applications*,
    Annals of Statistics 5 (1977).
    """
    check.check_chunk_size(chunk_size)
    given = Given("x", x, weights, groups, alone=True)
    if isinstance(x, Distribution):
        _samples.refuse_description(given, num_groups)
        re, im = closed_form(x, t)
        return torch.complex(re, im)
    samples, t = _samples.one_side(given, t, num_groups)
    phi = _phi.sums_of([samples], t, chunk_size)[0].phi()
    return torch.complex(phi.re, phi.im)


def amplitude_phase(phi: Tensor) -> tuple[Tensor, Tensor]:
    r"""Modulus and argument of a characteristic function, ``φ = |φ| exp(i a)``.

    Args:
        phi: complex, any shape.

    Returns:
        ``(|φ|, a)``, real, the shape of ``phi``; ``a`` in radians in [-π, π]. At φ = 0 both are 0
        and so are their gradients.

    Raises:
        TypeError: ``phi`` is not a complex tensor.

    Example:
        >>> amplitude, phase = amplitude_phase(torch.tensor([2j]))
        >>> amplitude.item(), round(phase.item(), 4)
        (2.0, 1.5708)

    Source: Li et al., *Reciprocal adversarial learning via characteristic functions*, NeurIPS 2020.
    """
    re, im = _samples.complex_parts(phi, "phi")
    zero = (re == 0) & (im == 0)
    # atan2 has no gradient at the origin; there it sees (0, 1) instead, and a constant.
    angle = torch.atan2(im, torch.where(zero, 1.0, re))
    return modulus(re, im), torch.where(zero, 0.0, angle)


# ------------------------------------------------------------------------------------------------
# Chf_α: two φ into one discrepancy per frequency
# ------------------------------------------------------------------------------------------------


def _chf(x_re: Tensor, x_im: Tensor, y_re: Tensor, y_im: Tensor, alpha: float) -> Tensor:
    """``α (|φx| - |φy|)² + (1-α) 2 (|φx||φy| - Re z)`` with ``z = φx conj φy``, stably.

    Both terms are differences of nearly equal numbers when the sets match, so both are rewritten
    with the differences ``φx - φy`` as factors: those are exact in floating point.
    """
    d_re, d_im = x_re - y_re, x_im - y_im
    if alpha == 0.5:
        return 0.5 * (d_re.square() + d_im.square())
    # Below these, the quotients' gradients overflow; the plain forms are then accurate enough,
    # being that far under any noise (1e-28 and 1e-14 in float32).
    tiny = torch.finfo(d_re.dtype).tiny ** 0.75
    x_mod, y_mod = modulus(x_re, x_im), modulus(y_re, y_im)
    value = torch.zeros_like(d_re)
    if alpha > 0:
        total = x_mod + y_mod
        safe = total > tiny**0.5
        factored = (d_re * (x_re + y_re) + d_im * (x_im + y_im)) / torch.where(safe, total, 1.0)
        value = value + alpha * torch.where(safe, factored, x_mod - y_mod).square()
    if alpha < 1:
        z_re = x_re * y_re + x_im * y_im
        z_im = d_im * y_re - d_re * y_im  # Im z, by the differences
        product = x_mod * y_mod
        safe = z_re > tiny
        denominator = torch.where(safe, product + z_re, 1.0)
        phase = torch.where(safe, 2 * z_im.square() / denominator, 2 * (product - z_re))
        value = value + (1 - alpha) * phase
    return value


def cf_discrepancy(phi_x: Tensor, phi_y: Tensor, *, alpha: float = 0.5) -> Tensor:
    r"""Weighted amplitude and phase discrepancy of two characteristic functions.

    .. math::
        \mathrm{Chf}_\alpha = \alpha\,(|\varphi_x|-|\varphi_y|)^2
          + (1-\alpha)\, 2|\varphi_x||\varphi_y|\,(1-\cos(a_x-a_y))

    ``alpha = 0.5`` gives ``½ |φx - φy|²``. Computed without angles and without cancellation:
    float32 keeps four digits at a phase gap of 1e-4.

    Args:
        phi_x: complex, any shape.
        phi_y: complex, the same shape.
        alpha: in [0, 1]; 1 compares amplitude (spread) only, 0 phase (location) only.

    Returns:
        Real, ``>= 0``, the shape of the inputs.

    Raises:
        TypeError: an input that is not complex, or ``alpha`` not a number.
        ValueError: shapes that differ, or ``alpha`` outside [0, 1].

    Example:
        >>> cf_discrepancy(torch.tensor([1 + 0j]), torch.tensor([0 + 1j]))
        tensor([1.])

    Source: Wang et al., *Dataset Distillation with Neural Characteristic Function*, CVPR 2025,
    equation 8.
    """
    alpha = check.check_alpha(alpha)
    x_re, x_im = _samples.complex_parts(phi_x, "phi_x")
    y_re, y_im = _samples.complex_parts(phi_y, "phi_y")
    if x_re.shape != y_re.shape:
        raise ValueError(
            f"phi_x and phi_y must have one shape, got {tuple(x_re.shape)} and {tuple(y_re.shape)}"
        )
    check.check_device(y_re, "phi_y", x_re.device)
    # The phase term rewritten can round to a negative zero or less by one ulp of |φ|².
    return _chf(x_re, x_im, y_re, y_im, alpha).clamp_min(0)


# ------------------------------------------------------------------------------------------------
# The loss
# ------------------------------------------------------------------------------------------------


def ncfd_loss(
    x: Tensor | Distribution,
    y: Tensor,
    t: Tensor,
    *,
    alpha: float = 0.5,
    squared: bool = False,
    unbiased: bool = False,
    reduction: str = "mean",
    frequency_weights: Tensor | None = None,
    x_groups: Tensor | None = None,
    y_groups: Tensor | None = None,
    num_groups: int | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    chunk_size: int | None = None,
    process_group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Neural characteristic function discrepancy between real ``x`` and synthetic ``y``.

    .. math:: \frac1F \sum_f \sqrt{\mathrm{Chf}_\alpha(t_f)}

    Zero exactly when both φ agree at ``t``, with zero gradient there. Two samples of the same
    distribution do not give zero: with N = M = 16, 64, 256, 1024 the root loss is about 0.22, 0.11,
    0.054, 0.028, which is the value to call converged.

    Args:
        x: real samples ``(*, N, D)``; or a ``Distribution`` (its exact φ is used); or a complex
            tensor ``(*, F)`` (``(G, F)`` with groups) holding an already known φ at ``t``, where a
            row of zeros is a group without samples.
        y: synthetic samples ``(*, M, D)``.
        t: frequencies ``(F, D)`` or ``(*, F, D)``.
        alpha: weight of amplitude against phase in [0, 1], see :func:`cf_discrepancy`.
        squared: leave out the root.
        unbiased: the U-statistic, which removes the ``(1-|φ|²)/N`` by which sampling noise raises
            the squared loss. Needs ``squared=True`` and ``alpha=0.5``; it can be negative, and
            needs two samples on each side (in each group). A known φ counts as exact.
        reduction: ``"mean"`` over frequencies and over the groups present on both sides,
            ``"sum"``, or ``"none"``. Batch dimensions stay under all three: each set of ``(N, D)``
            is a comparison of its own, and how they are reduced is the caller's choice,
            ``.mean()`` for most.
        frequency_weights: ``(F,)``, non-negative, not all zero, by which the values at the
            frequencies are multiplied (quadrature, importance weights); the mean is taken over
            them, ``Σ w v / Σ w``.
        x_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with ``y_groups``.
        y_groups: integer labels ``(M,)``.
        num_groups: G; required with groups.
        x_weights: ``(*, N)``, non-negative, not all zero.
        y_weights: ``(*, M)``, likewise.
        chunk_size: rows whose phases are held at once, see :func:`characteristic_function`.
        process_group: processes whose parts make up the batch; see below. None: no communication.

    Returns:
        Shape ``*`` (a scalar without batch dimensions); with ``reduction="none"`` ``(*, F)`` or
        ``(G, F)``, where a group not present on both sides has zeros. float32, or float64 if an
        input is.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, labels, weights or options that do not fit; no group on both sides
            (seen on the CPU; elsewhere the mean is NaN); with a ``process_group``, frequencies that
            differ between processes (likewise), or ``torch.distributed`` not initialised.

    **Several processes.** With a ``process_group`` the samples, labels and weights are this
    process's part: parts may differ in size, and one may be empty or lack groups. ``t``, a known φ
    and all options are the same on all. The sums of both sides, the weights and the counts are
    added in one all-reduce, so every process returns the value of the whole batch,
    :math:`L(\sum_p s_p)`. The backward adds the gradients :math:`\partial L/\partial s` of all
    ``P`` processes in the same way and hands each ``P`` times its share,
    :math:`P\,(\partial L/\partial s)(\partial s_p/\partial\theta)`; the mean over the processes,
    which ``DistributedDataParallel`` takes, is the gradient of one process with the whole batch.
    So for leaf tensors: averaged over the processes, the gradient of what all hold (parameters,
    ``t``) is that of one process, and a tensor only one holds (its samples, its weights) gets
    ``P`` times that. Every process must call ``backward``, on the same loss; second derivatives
    follow the same rule.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, t = torch.randn(64, 2, generator=g), torch.randn(16, 2, generator=g)
        >>> ncfd_loss(x, x, t).item()
        0.0
        >>> bool(ncfd_loss(x, x + 1, t) > ncfd_loss(x, x + 0.1, t))
        True

    Source: Wang et al., *Dataset Distillation with Neural Characteristic Function*, CVPR 2025.
    """
    return discrepancy(
        Given("x", x, x_weights, x_groups),
        Given("y", y, y_weights, y_groups),
        t,
        Form(alpha, squared, unbiased, reduction, frequency_weights),
        num_groups=num_groups,
        chunk_size=chunk_size,
        process_group=process_group,
    )


def signal_discrepancy(
    x: Tensor | Distribution,
    y: Tensor,
    t: Tensor,
    *,
    x_groups: Tensor | None = None,
    y_groups: Tensor | None = None,
    num_groups: int | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    reduction: str = "mean",
    process_group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""J: the squared gap beyond the noise of the real sample, where that sample carries signal.

    .. math::
        \frac1F \sum_f \Big(|\hat\varphi_x-\hat\varphi_y|^2 - n_x\Big)
        \max\big(0,\ |\hat\varphi_x|^2 - n_x\big),\qquad n_x = \frac{1-|\hat\varphi_x|^2}{N-1}

    What an adversary of the discrepancy should ascend. A few synthetic points always differ from a
    distribution at high frequencies, so that the loss itself is largest where nothing can be
    learned; the second factor, the unbiased ``|φx|²``, dies out there. ``n_x`` is the variance of
    the *real* estimate alone: the synthetic set is the measure, not a sample of one. Both factors
    rest on one real sample, so that their product has a bias of order ``1/N``.

    Args:
        x: real samples ``(*, N, D)``, or a ``Distribution`` or known φ, as in :func:`ncfd_loss`;
            for the latter two ``n_x`` is 0. A single sample (of a group) gives 0. With weights,
            ``1/(N-1)`` is ``s/(1-s)``, ``s`` the sum of the squared normalised weights.
        y: synthetic samples ``(*, M, D)``.
        t: frequencies ``(F, D)`` or ``(*, F, D)``.
        x_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with ``y_groups``.
        y_groups: integer labels ``(M,)``.
        num_groups: G; required with groups.
        x_weights: ``(*, N)``, non-negative, not all zero.
        y_weights: ``(*, M)``, likewise.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`ncfd_loss`.
        process_group: processes whose parts make up the batch, as in :func:`ncfd_loss`.

    Returns:
        Shape ``*``; ``(*, F)`` or ``(G, F)`` unreduced. Can be negative.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, labels, weights or options that do not fit.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(256, 2, generator=g), torch.randn(10, 2, generator=g) + 1
        >>> t = torch.randn(512, 2, generator=g)
        >>> # Frequencies ten times as high see noise: nothing for an adversary to gain.
        >>> bool(signal_discrepancy(x, y, t) > 10 * signal_discrepancy(x, y, 10 * t))
        True

    Source: this package.
    """
    form = Form(reduction=reduction).checked()
    group = _processes.check_group(process_group)
    sides = Given("x", x, x_weights, x_groups), Given("y", y, y_weights, y_groups)
    pair = _samples.pair(*sides, t, num_groups, part=group is not None)
    return _signal(*_phi.of_pair(pair, None, group), form, ("x", "y"))


class Form(NamedTuple):
    """Which discrepancy: the options of :func:`ncfd_loss` that are not about its data."""

    alpha: float = 0.5
    squared: bool = False
    unbiased: bool = False
    reduction: str = "mean"
    frequency_weights: Tensor | None = None

    def checked(self) -> Self:
        """Itself, with every option known to be one, and all to go together."""
        alpha = check.check_alpha(self.alpha)
        check.check_flag(self.squared, "squared")
        check.check_flag(self.unbiased, "unbiased")
        check.check_reduction(self.reduction)
        check.check_unbiased(self.unbiased, self.squared, alpha)
        return self if alpha is self.alpha else self._replace(alpha=alpha)


def discrepancy(
    real: Given,
    synthetic: Given,
    t: Tensor,
    form: Form,
    *,
    num_groups: int | None,
    chunk_size: int | None = None,
    process_group: torch.distributed.ProcessGroup | None = None,
    name_of_t: str = "t",
    pays_signal: Callable[[Phi], None] | None = None,
) -> Tensor:
    """:func:`ncfd_loss` of two sides, under the names that the caller knows them by.

    With ``pays_signal`` the samples get its gradient, and ``t`` minus that of
    :func:`signal_discrepancy`. It is called with the φ̂ of the real side.
    """
    form = form.checked()
    check.check_chunk_size(chunk_size)
    group = _processes.check_group(process_group)
    part = group is not None
    pair = _samples.pair(real, synthetic, t, num_groups, part=part, name_of_t=name_of_t)
    if form.frequency_weights is not None:
        weights = check.check_frequency_weights(form.frequency_weights, pair.t, form.reduction)
        form = form._replace(frequency_weights=weights)
    names = real.name, synthetic.name
    if pays_signal is None:
        return _value(*_phi.of_pair(pair, chunk_size, group, name_of_t), form, names)
    fixed = pair.known and _samples.pair(real, synthetic, t.detach(), num_groups, part=part).known
    sides, adversary = _phi.of_pair_apart(pair, fixed, group, name_of_t)
    value = _value(*sides, form, names)
    phi_x = adversary[0].phi()
    pays_signal(phi_x)
    gain = _signal(phi_x, adversary[1], form, names)
    # Nothing is added but the gradient: the adversary ascends what it is paid for.
    return value + (gain.detach() - gain)


def _value(x: Sums | Phi, y: Sums, form: Form, names: tuple[str, str]) -> Tensor:
    """The discrepancy of two sides in the form asked for."""
    alpha, squared, unbiased, reduction, weights = form
    if alpha == 0.5 and not squared and x.rows is not None and y.rows is not None and eager():
        divisor = None
        if weights is None and reduction != "none":
            divisor = y.cos.shape[-1] if reduction == "mean" else 1
        value: Tensor = RootOfHalf.apply(x.cos, x.sin, x.rows, y.cos, y.sin, y.rows, divisor)
        return value if divisor else _reduce(value, form)
    phi_x, phi_y = x.phi(), y.phi()
    if unbiased:
        value = _phi.unbiased(phi_x, phi_y, names)
    else:
        value = _chf(phi_x.re, phi_x.im, phi_y.re, phi_y.im, alpha)
        if not squared:
            value = root(value)
    return _reduce(value, form, _phi.common(phi_x, phi_y), names)


def _signal(x: Sums | Phi, y: Sums, form: Form, names: tuple[str, str]) -> Tensor:
    """J of two sides, reduced as the discrepancy is."""
    phi_x, phi_y = x.phi(), y.phi()
    return _reduce(_phi.signal(phi_x, phi_y), form, _phi.common(phi_x, phi_y), names)


def _reduce(
    value: Tensor,
    form: Form,
    present: Tensor | None = None,
    names: tuple[str, str] = ("x", "y"),
) -> Tensor:
    """Over the last dimension and, with ``present (G,)``, over those groups."""
    reduction, weights = form.reduction, form.frequency_weights
    count: Tensor | int = value.shape[-1]
    if weights is not None:
        value, count = value * weights, weights.sum()
    if present is not None:
        value = torch.where(present.unsqueeze(1), value, 0.0)  # (G, F)
    if reduction == "none":
        return value
    if present is None:
        if reduction == "sum":
            return value.sum(-1)
        return value.mean(-1) if weights is None else value.sum(-1) / count
    check.check_common_groups(present, *names)
    return value.sum() if reduction == "sum" else value.sum() / (present.sum() * count)


# ------------------------------------------------------------------------------------------------
# The game
# ------------------------------------------------------------------------------------------------


def gradient_reversal(t: Tensor, scale: float = 1.0) -> Tensor:
    """Identity in the forward pass, ``-scale`` times the gradient in the backward pass.

    Put between an adversary and the loss: one ``backward()`` then descends for everyone else and
    ascends for the adversary.

    Args:
        t: any floating-point tensor.
        scale: factor of the reversed gradient, ``>= 0``.

    Returns:
        ``t`` with another gradient.

    Raises:
        TypeError: ``t`` is not a floating-point tensor or ``scale`` not a number.
        ValueError: ``scale`` is negative or not finite.

    Example:
        >>> t = torch.ones(1, requires_grad=True)
        >>> (3 * gradient_reversal(t)).backward()
        >>> t.grad
        tensor([-3.])

    Source: Ganin & Lempitsky, *Unsupervised domain adaptation by backpropagation*, ICML 2015.
    """
    t = check.check_floating(t, "t")
    scale = check.check_between(scale, "scale", 0, sys.float_info.max)
    if torch.compiler.is_compiling():
        # The same in plain operations (but for infinities): older dynamos trip over the Function.
        fixed = t.detach()
        return fixed - scale * (t - fixed)
    reversed_: Tensor = _Reversal.apply(t, scale)
    return reversed_


class _Reversal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, scale: float) -> Tensor:  # noqa: ARG004 - used by the backward
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004 - as PyTorch calls it
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None
