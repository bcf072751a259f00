"""The mathematics: characteristic functions from samples, and the discrepancy between two.

Letters used throughout: N and M samples, D features, F frequencies, G groups (classes), K
components of a mixture, ``*`` leading batch dimensions.

    samples, frequencies --> sums of cos and sin --> φ --> Chf_α --> loss

The sums come from :mod:`ncfd.ops`; everything here is the arithmetic on top of them. Inside, a
complex number is a pair of real tensors; complex tensors appear only in the public functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ncfd import _processes, ops
from ncfd import _validation as check
from ncfd._devices import widest_float
from ncfd.distributions import closed_form
from ncfd.sliced import sliced_normality

__all__ = [
    "amplitude_phase",
    "cf_discrepancy",
    "characteristic_function",
    "gaussian_ncfd",
    "gradient_reversal",
    "ncfd_loss",
    "sliced_normality",
]


class Names(NamedTuple):
    """What a caller knows the arguments by: messages speak of these."""

    x: str = "x"
    y: str = "y"
    t: str = "t"


class _Sums(NamedTuple):
    """What is known of samples at F frequencies. Everything in it adds: over any cut of a batch."""

    cos: Tensor  # Σ w cos⟨t, x⟩: (*, F), or (G, F) with groups
    sin: Tensor
    total: Tensor | float  # Σ w: (*, 1), or (G,) with groups; N where nothing else was given
    squares: Tensor | float  # Σ w², likewise
    grouped: bool
    #: Of a process's part: negative weights, labels out of range.
    faults: tuple[float, float] = (0.0, 0.0)


class _Phi(NamedTuple):
    """A characteristic function at F frequencies, and what is known about its estimate."""

    re: Tensor  # (*, F) or (G, F)
    im: Tensor
    #: Which groups have samples, (G,); None where there are no groups.
    present: Tensor | None
    #: Σ of squared normalised weights, (*, 1) or (G, 1): 1/N for plain samples, 0 for an exact φ.
    share: Tensor | float


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
    if isinstance(x, Distribution):
        _refuse_with_known_phi("a Distribution", "x", weights=weights, groups=groups)
        if num_groups is not None:
            raise ValueError("num_groups needs groups, and a Distribution has none")
        check.check_chunk_size(chunk_size)
        re, im = closed_form(x, t)
        return torch.complex(re, im)
    x = check.check_samples(x, "x")
    t = check.check_frequencies(t, tuple(x.shape[:-2]), x.shape[-1], x.device)
    chunk_size = check.check_chunk_size(chunk_size)
    dtype = _compute_dtype(x, t)
    samples = _checked(x, weights, groups, num_groups, dtype, ("weights", "groups"))
    phi = _normalised(_sums(samples, t.to(dtype), chunk_size))
    return torch.complex(phi.re, phi.im)


class _Samples(NamedTuple):
    """Samples that passed every check, in the dtype of the computation."""

    side: ops.Side
    num_groups: int | None
    faults: tuple[float, float]


def _checked(
    x: Tensor,
    weights: Tensor | None,
    groups: Tensor | None,
    num_groups: int | None,
    dtype: torch.dtype,
    names: tuple[str, str],
    *,
    part: bool = False,
) -> _Samples:
    """Samples ``x (*, N, D)`` with what describes them; ``names`` are of the weights and groups.

    With ``part`` the samples are a process's part of a batch: it may be empty, and faults in its
    values are for :func:`_of_all_processes` to tell.
    """
    if weights is not None:
        weights = check.check_weights(weights, names[0], x, part=part)
    if groups is not None:
        groups, num_groups = check.check_groups(groups, num_groups, names[1], x, part=part)
    elif num_groups is not None:
        raise ValueError(f"num_groups needs {names[1]}, got num_groups={num_groups} alone")
    faults = (0.0, 0.0)
    if part:
        groups, faults = check.faults_of_part(weights, groups, num_groups or 1)
    # Each input is cast once: two casts of a half tensor would round two partial gradients and
    # add them in half precision.
    if weights is not None and not part:
        # Only proportions count, and sums of squares leave the range of float32 at 1e19 and 1e-19.
        # Processes know no common maximum.
        weights = _cast(weights, torch.promote_types(weights.dtype, dtype))
        largest = weights.detach().amax(-1, keepdim=True)
        weights = weights / torch.where(largest == 0, 1.0, largest)
    weights = None if weights is None else _cast(weights, dtype)
    return _Samples(ops.Side(_cast(x, dtype), weights, groups), num_groups, faults)


def _sums(samples: _Samples, t: Tensor, chunk_size: int | None) -> _Sums:
    """The sums of one side."""
    (x, weights, _), num_groups, _ = samples
    if x.shape[-2] > 0:
        return _weighed(samples, *ops.sums_of(samples.side, t, num_groups, chunk_size))
    # Zeros, but in the graph: DistributedDataParallel waits for the gradient of every input.
    nothing = x.sum() + (0 * t).sum(-1)  # (F,) or (*, F)
    if weights is not None:
        nothing = nothing + weights.sum()
    shape = x.shape[:-2] if num_groups is None else (num_groups,)
    nothing = nothing.expand(*shape, t.shape[-2])
    return _weighed(samples, nothing, nothing)


def _sums_of_both(
    x: _Samples, y: _Samples, t: Tensor, chunk_size: int | None
) -> tuple[_Sums, _Sums]:
    """The sums of two sides of one shape, which cost less together."""
    if x.side.x.shape[-2] == 0 or y.side.x.shape[-2] == 0:
        return _sums(x, t, chunk_size), _sums(y, t, chunk_size)
    pairs = ops.sums_of_both(x.side, y.side, t, x.num_groups, chunk_size)
    return _weighed(x, *pairs[0]), _weighed(y, *pairs[1])


def _weighed(samples: _Samples, cos: Tensor, sin: Tensor) -> _Sums:
    """The sums with the weight that they carry."""
    (x, weights, groups), num_groups, faults = samples
    rows = x.shape[-2]
    if weights is None and groups is None:
        return _Sums(cos, sin, rows, rows, False, faults)
    w = x.new_ones(rows) if weights is None else weights
    if groups is None or num_groups is None:
        total, squares = w.sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)  # (*, 1)
        return _Sums(cos, sin, total, squares, False, faults)
    zeros = w.new_zeros(num_groups)
    total = zeros.scatter_add(0, groups, w)  # (G,)
    squares = zeros.scatter_add(0, groups, w.square())
    return _Sums(cos, sin, total, squares, True, faults)


def _normalised(sums: _Sums) -> _Phi:
    """φ̂: the sums over their weight."""
    cos, sin, total, squares, grouped, _ = sums
    if not isinstance(total, Tensor) or not isinstance(squares, Tensor):
        # Not squares / total²: its range is beyond the exporter, which has to know it below 1.
        return _Phi(cos / total, sin / total, None, 1.0 / total)
    if not grouped:
        return _Phi(cos / total, sin / total, None, squares / total.square())
    present = total > 0
    # An empty group: 0 / 1 = 0, and nothing to differentiate. NaN weights stay NaN.
    total = torch.where(total == 0, 1.0, total).unsqueeze(1)
    return _Phi(cos / total, sin / total, present, squares.unsqueeze(1) / total.square())


def _of_all_processes(
    sides: dict[str, _Sums], t: Tensor, group: torch.distributed.ProcessGroup, name_of_t: str
) -> dict[str, _Sums]:
    """The sums of the whole batch from those of this process's part, by one all-reduce.

    Whatever is wrong with values is decided afterwards, on the same numbers everywhere, so that
    all processes raise or none does.
    """
    values: list[Tensor] = []
    for side in sides.values():
        shape = side.cos.shape[:1] if side.grouped else (*side.cos.shape[:-1], 1)
        weighed = (
            v if isinstance(v, Tensor) else side.cos.new_full(shape, v)
            for v in (side.total, side.squares)
        )
        values += [side.cos, side.sin, *weighed, side.cos.new_tensor(side.faults)]
    visible = check.values_visible(t)
    mark = t.new_zeros(3, dtype=widest_float(t.device))
    if visible:
        total = t.detach().sum(dtype=torch.float64)
        mark = torch.stack([total, total.square(), t.detach().abs().sum(dtype=torch.float64)])
    *values, mark = _processes.add_up([*values, mark], group)
    if visible:
        first, second, size = mark.tolist()
        world = torch.distributed.get_world_size(group)
        # A variance above rounding: equal frequencies give equal totals.
        if second * world - first**2 > (1e-6 * size) ** 2:
            raise ValueError(
                f"{name_of_t} must be the same on all processes of the process_group; draw it from "
                "one seed on all, or broadcast it"
            )
    whole = {}
    for i, (name, side) in enumerate(sides.items()):
        cos, sin, total, squares, faults = values[5 * i : 5 * i + 5]
        if visible:
            negative, stray = faults.tolist()
            if negative:
                raise ValueError(
                    f"{name}_weights must be non-negative, got negative ones on {negative:g} "
                    "processes of the process_group"
                )
            if stray:
                raise ValueError(
                    f"{name}_groups must lie in [0, num_groups), got labels outside on "
                    f"{stray:g} processes of the process_group"
                )
            if not side.grouped and bool((total == 0).any()):
                raise ValueError(
                    f"{name} must hold a sample of positive weight on some process of the "
                    "process_group"
                )
        whole[name] = _Sums(cos, sin, total, squares, side.grouped)
    return whole


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: half types never hold a phase."""
    for v in tensors:
        if v.dtype in (torch.float64, torch.complex128):
            return torch.float64
    return torch.float32


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A cast that changes nothing takes as long as a sum over a small batch.
    return x if x.dtype == dtype else x.to(dtype)


def _refuse_with_known_phi(what: str, x: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} describes samples, but {x} is {what}; leave {name} out")


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
    re, im = _split(phi, "phi")
    zero = (re == 0) & (im == 0)
    # atan2 has no gradient at the origin; there it sees (0, 1) instead, and a constant.
    angle = torch.atan2(im, torch.where(zero, 1.0, re))
    return _modulus(re, im), torch.where(zero, 0.0, angle)


def _split(phi: object, name: str) -> tuple[Tensor, Tensor]:
    phi = check.check_tensor(phi, name)
    if not phi.is_complex():
        raise TypeError(f"{name} must be a complex tensor, got {check.describe(phi)}")
    if phi.dtype == torch.complex32:
        phi = phi.to(torch.complex64)
    return phi.real, phi.imag


# ------------------------------------------------------------------------------------------------
# Chf_α: two φ into one discrepancy per frequency
# ------------------------------------------------------------------------------------------------


def _root(value: Tensor) -> Tensor:
    """Square root with slope 0 at 0, so that equal inputs have a finite gradient."""
    positive = value > 0
    root = torch.sqrt(torch.where(positive, value, 1.0))
    # `value * 0` keeps NaN a NaN and anything else 0.
    return torch.where(positive, root, value * 0)


class _RootOfHalf(torch.autograd.Function):
    """``√½ |φx - φy|`` of plain samples, from their sums and numbers: the loss at α = ½.

    The same as :func:`_root` of :func:`_chf` in one step of the graph instead of thirteen, which
    for small batches take longer than the sums.
    """

    @staticmethod
    def forward(
        ctx: Any, x_cos: Tensor, x_sin: Tensor, N: int, y_cos: Tensor, y_sin: Tensor, M: int
    ) -> Tensor:
        ctx.rows = N, M
        d_re, d_im = _gap(x_cos, y_cos, M / N), _gap(x_sin, y_sin, M / N)
        modulus = torch.hypot(d_re, d_im)
        ctx.save_for_backward(x_cos, x_sin, y_cos, y_sin, d_re, d_im, modulus)
        value: Tensor = modulus * (0.5**0.5 / M)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_cos, x_sin, y_cos, y_sin, d_re, d_im, modulus = ctx.saved_tensors
        N, M = ctx.rows
        if torch.is_grad_enabled():  # to be differentiated again: what was saved has no history
            d_re, d_im = _gap(x_cos, y_cos, M / N), _gap(x_sin, y_sin, M / N)
            modulus = _modulus(d_re, d_im)
            modulus = torch.where(modulus == 0, 1.0, modulus)
        else:
            modulus = modulus.clamp_min(1e-30)  # where it is 0 so are both differences
        slope = grad * (-(0.5**0.5) / M) / modulus
        y_re, y_im = slope * d_re, slope * d_im
        x_re = x_im = None
        if ctx.needs_input_grad[0]:
            x_re, x_im = y_re * (-M / N), y_im * (-M / N)
        return x_re, x_im, None, y_re, y_im, None


def _gap(x: Tensor, y: Tensor, ratio: float) -> Tensor:
    """Difference of two means, times the number of the second one's samples; 0 if equal."""
    return x - y if ratio == 1 else x * ratio - y


def _plain_root(x: _Sums | _Phi, y: _Sums) -> Tensor | None:
    """The loss at α = ½ where :class:`_RootOfHalf` gives it, else None."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return None  # graphs fuse the plain form, and torch.func composes it
    if isinstance(x, _Phi) or isinstance(x.total, Tensor) or isinstance(y.total, Tensor):
        return None
    value: Tensor = _RootOfHalf.apply(x.cos, x.sin, x.total, y.cos, y.sin, y.total)
    return value


def _modulus(re: Tensor, im: Tensor) -> Tensor:
    return _root(re.square() + im.square())


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
    x_mod, y_mod = _modulus(x_re, x_im), _modulus(y_re, y_im)
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
    x_re, x_im = _split(phi_x, "phi_x")
    y_re, y_im = _split(phi_y, "phi_y")
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
            ``"sum"``, or ``"none"``. Batch dimensions stay.
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
    return named_loss(
        Names(),
        x,
        y,
        t,
        alpha,
        squared,
        unbiased,
        reduction,
        x_groups,
        y_groups,
        num_groups,
        x_weights,
        y_weights,
        chunk_size,
        process_group,
    )


def named_loss(
    names: Names,
    x: Tensor | Distribution,
    y: Tensor,
    t: Tensor,
    alpha: float,
    squared: bool,
    unbiased: bool,
    reduction: str,
    x_groups: Tensor | None,
    y_groups: Tensor | None,
    num_groups: int | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    chunk_size: int | None,
    process_group: torch.distributed.ProcessGroup | None,
) -> Tensor:
    """``ncfd_loss``, whose messages call the arguments by ``names``."""
    alpha = check.check_alpha(alpha)
    squared = check.check_flag(squared, "squared")
    unbiased = check.check_flag(unbiased, "unbiased")
    reduction = check.check_reduction(reduction)
    check.check_unbiased(unbiased, squared, alpha)
    process_group = _processes.check_group(process_group)
    y = check.check_samples(y, names.y, part=process_group is not None)
    sides = _both_sides(
        names,
        x,
        y,
        t,
        x_groups,
        y_groups,
        num_groups,
        x_weights,
        y_weights,
        chunk_size,
        process_group,
    )
    if alpha == 0.5 and not squared:
        value = _plain_root(*sides)
        if value is not None:
            return _reduce(value, reduction, None, names)
    phi_x, phi_y = (s if isinstance(s, _Phi) else _normalised(s) for s in sides)
    if unbiased:
        value = _unbiased(phi_x, phi_y, names)
    else:
        value = _chf(phi_x.re, phi_x.im, phi_y.re, phi_y.im, alpha)
        if not squared:
            value = _root(value)
    return _reduce(value, reduction, _common(phi_x.present, phi_y.present), names)


def _both_sides(
    names: Names,
    x: Tensor | Distribution,
    y: Tensor,
    t: Tensor,
    x_groups: Tensor | None,
    y_groups: Tensor | None,
    num_groups: int | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    chunk_size: int | None,
    group: torch.distributed.ProcessGroup | None,
) -> tuple[_Sums | _Phi, _Sums]:
    """The real and the synthetic side, of one shape, device and dtype; φ where x is no sample."""
    batch, part = tuple(y.shape[:-2]), group is not None
    of_x = f"{names.x}_weights", f"{names.x}_groups"
    of_y = f"{names.y}_weights", f"{names.y}_groups"
    given_for_x = dict(zip(of_x, (x_weights, x_groups), strict=True))

    def sums_of_y(dtype: torch.dtype) -> _Sums:
        samples = _checked(y, y_weights, y_groups, num_groups, dtype, of_y, part=part)
        sums = _sums(samples, t.to(dtype), chunk_size)
        if group is None:
            return sums
        return _of_all_processes({names.y: sums}, t.to(dtype), group, names.t)[names.y]

    if isinstance(x, Distribution):
        _refuse_with_known_phi("a Distribution", names.x, **given_for_x)
        t = check.check_frequencies(t, batch, y.shape[-1], y.device, names.t)
        chunk_size = check.check_chunk_size(chunk_size)
        sums = sums_of_y(_compute_dtype(y, t))
        re, im = (v.to(sums.cos.dtype) for v in closed_form(x, t))
        if re.shape != sums.cos.shape:
            if re.ndim != 1:
                raise ValueError(
                    f"{names.x} has batch shape {tuple(x.batch_shape)}, which must be () or "
                    f"{tuple(sums.cos.shape[:-1])} to match {names.y} (its batch, or the groups)"
                )
            re, im = re.expand_as(sums.cos), im.expand_as(sums.sin)
        return _Phi(re, im, None, 0.0), sums
    x = check.check_tensor(x, names.x)
    if x.is_complex():
        _refuse_with_known_phi("a known φ", names.x, **given_for_x)
        re, im = _split(x, names.x)
        t = check.check_frequencies(t, batch, y.shape[-1], y.device, names.t)
        chunk_size = check.check_chunk_size(chunk_size)
        dtype = _compute_dtype(x, y, t)
        sums = sums_of_y(dtype)
        if x.shape != sums.cos.shape:
            raise ValueError(
                f"{names.x}, a known φ, must have shape {tuple(sums.cos.shape)} to match "
                f"{names.y} and {names.t}, got {check.describe(x)}"
            )
        check.check_device(x, names.x, y.device)
        present = None if y_groups is None else ((re != 0) | (im != 0)).any(-1)
        return _Phi(re.to(dtype), im.to(dtype), present, 0.0), sums

    x = check.check_samples(x, names.x, part=part)
    if tuple(x.shape[:-2]) != batch or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{names.x} and {names.y} must agree in all but the number of samples, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check.check_device(y, names.y, x.device)
    if (x_groups is None) != (y_groups is None):
        given, missing = (of_x[1], of_y[1]) if y_groups is None else (of_y[1], of_x[1])
        raise ValueError(f"{given} needs {missing}: groups are matched group by group")
    t = check.check_frequencies(t, batch, x.shape[-1], x.device, names.t)
    chunk_size = check.check_chunk_size(chunk_size)
    dtype = _compute_dtype(x, y, t)
    real = _checked(x, x_weights, x_groups, num_groups, dtype, of_x, part=part)
    synthetic = _checked(y, y_weights, y_groups, num_groups, dtype, of_y, part=part)
    t = _cast(t, dtype)
    sums_of_x, sums = _sums_of_both(real, synthetic, t, chunk_size)
    if group is not None:
        both = _of_all_processes({names.x: sums_of_x, names.y: sums}, t, group, names.t)
        return both[names.x], both[names.y]
    return sums_of_x, sums


def _unbiased(x: _Phi, y: _Phi, names: Names) -> Tensor:
    """U-statistic of ``½ |φx - φy|²``: the diagonal pairs, each 1, taken out of both squares."""
    value = (x.re - y.re).square() + (x.im - y.im).square()
    common = _common(x.present, y.present)
    for name, side in ((names.x, x), (names.y, y)):
        share = side.share
        if isinstance(share, Tensor):
            single = share >= 1
            if common is not None:
                single = single & common.unsqueeze(1)
            alone = check.values_visible(share) and bool(single.any())
            # Absent groups hold 0 or 1 here and are masked later: keep them finite.
            if common is not None:
                share = torch.where(common.unsqueeze(1), share, 0.0)
        else:
            alone = share >= 1
        if alone:
            raise ValueError(
                f"unbiased=True needs at least two samples with positive weight in {name} "
                "(in each group present on both sides)"
            )
        value = value - (1 - side.re.square() - side.im.square()) * (share / (1 - share))
    return 0.5 * value


def _common(x_present: Tensor | None, y_present: Tensor | None) -> Tensor | None:
    """Groups present on both sides, (G,); a known φ without groups is present everywhere."""
    if x_present is None or y_present is None:
        return y_present if x_present is None else x_present
    return x_present & y_present


def _reduce(value: Tensor, reduction: str, present: Tensor | None, names: Names) -> Tensor:
    """Over the last dimension and, with ``present (G,)``, over those groups."""
    if present is None:
        if reduction == "none":
            return value
        return value.mean(-1) if reduction == "mean" else value.sum(-1)
    value = torch.where(present.unsqueeze(1), value, 0.0)  # (G, F)
    if reduction == "none":
        return value
    if check.values_visible(present) and not bool(present.any()):
        raise ValueError(
            f"{names.x}_groups and {names.y}_groups have no group in common: nothing to compare"
        )
    if reduction == "sum":
        return value.sum()
    return value.sum() / (present.sum() * value.shape[1])


# ------------------------------------------------------------------------------------------------
# The exact limit
# ------------------------------------------------------------------------------------------------


def gaussian_ncfd(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor = 1.0,
    *,
    unbiased: bool = False,
    reduction: str = "mean",
    x_groups: Tensor | None = None,
    y_groups: Tensor | None = None,
    num_groups: int | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    chunk_size: int | None = None,
    real_rows: int | None = None,
) -> Tensor:
    r"""Squared discrepancy with infinitely many Gaussian frequencies, in closed form.

    .. math::
        \mathbb E_{t\sim N(0,\mathrm{diag}\,\sigma^2)}\, \tfrac12|\varphi_x(t)-\varphi_y(t)|^2
        = \tfrac12\,\mathrm{MMD}^2_k,\qquad k(a,b) = e^{-\frac12|\sigma\odot(a-b)|^2}

    The limit of ``ncfd_loss(x, y, t, squared=True)`` as F grows: no frequency noise, and cheaper
    whenever there are fewer synthetic samples than frequencies. Costs ``(N + M)²`` kernel values,
    formed in blocks: memory is linear in the samples. Nearly all of them are pairs of real samples
    where there are many; ``real_rows`` spares these, which the synthetic samples do not feel.

    Args:
        x: real samples ``(*, N, D)``.
        y: synthetic samples ``(*, M, D)``.
        scale: σ, the standard deviation of the frequencies, in radians per unit of ``x``: a
            number, ``(D,)``, or ``(K, D)`` for the equal mixture of K normals. Differentiable.
        unbiased: the U-statistic (pairs of a sample with itself left out); can be negative.
        reduction: with groups, ``"mean"`` or ``"sum"`` over the groups present on both sides, or
            ``"none"``; without groups all three are the same.
        x_groups: integer labels ``(N,)`` in ``[0, num_groups)``; together with ``y_groups``.
        y_groups: integer labels ``(M,)``.
        num_groups: G; required with groups.
        x_weights: ``(*, N)``, non-negative, not all zero.
        y_weights: ``(*, M)``, likewise.
        chunk_size: rows of a block of kernel values. Default: what fits a core's cache, kept for
            the backward within ``ncfd.ops.BUDGET``.
        real_rows: how many rows of ``x`` (the first ones of each group) give the pairs of real
            samples, ``½ E [k(x, x') - 1]``. 0 leaves this term out: the gradient for ``y`` is the
            same, the value another. Some hundreds estimate it for a learned ``scale``, without
            bias if ``unbiased``. Not with ``x_weights``. Default: all.

    Returns:
        Shape ``*``; with groups a scalar, or ``(G,)`` for ``"none"`` with zeros for a group not
        present on both sides.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, labels, weights or options that do not fit, or ``real_rows=0`` where
            ``x``, its weights or ``scale`` want the gradient of the term it leaves out.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> gaussian_ncfd(x, x).item()
        0.0
        >>> round(gaussian_ncfd(x[:1], x[1:]).item(), 4)  # 1 - exp(-1/2)
        0.3935

    Source: Gretton et al., *A kernel two-sample test*, JMLR 13 (2012), with Bochner's theorem.
    """
    unbiased = check.check_flag(unbiased, "unbiased")
    reduction = check.check_reduction(reduction)
    chunk_size = check.check_chunk_size(chunk_size)
    x, y = check.check_samples(x, "x"), check.check_samples(y, "y")
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            "x and y must agree in all but the number of samples, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    check.check_device(y, "y", x.device)
    scale = _as_scales(scale, x)
    dtype = _compute_dtype(x, y, scale)
    if real_rows is not None:
        real_rows = check.check_real_rows(real_rows, unbiased, x_weights, x=x, scale=scale)
    if x_weights is not None:
        x_weights = check.check_weights(x_weights, "x_weights", x)
    if y_weights is not None:
        y_weights = check.check_weights(y_weights, "y_weights", y)
    if (x_groups is None) != (y_groups is None):
        given, missing = ("x_groups", "y_groups") if y_groups is None else ("y_groups", "x_groups")
        raise ValueError(f"{given} needs {missing}: groups are matched group by group")
    count = 0
    if x_groups is not None and y_groups is not None:
        x_groups, count = check.check_groups(x_groups, num_groups, "x_groups", x)
        y_groups, _ = check.check_groups(y_groups, num_groups, "y_groups", y)
    elif num_groups is not None:
        raise ValueError(f"num_groups needs x_groups and y_groups, got num_groups={num_groups}")

    batch = tuple(x.shape[:-2])
    w_x = x.new_ones(x.shape[:-1], dtype=dtype) if x_weights is None else x_weights.to(dtype)
    w_y = y.new_ones(y.shape[:-1], dtype=dtype) if y_weights is None else y_weights.to(dtype)
    x, y = x.to(dtype).reshape(-1, *x.shape[-2:]), y.to(dtype).reshape(-1, *y.shape[-2:])
    w_x, w_y = w_x.reshape(-1, w_x.shape[-1]), w_y.reshape(-1, w_y.shape[-1])  # (B, N), (B, M)
    # Squared distances lose digits far from the origin, and only differences count.
    center = _center(x, y)
    x, y = x - center, y - center
    present = None
    if x_groups is not None and y_groups is not None:
        x, w_x = _by_group(x[0], w_x[0], x_groups, count)  # (G, n, D), (G, n)
        y, w_y = _by_group(y[0], w_y[0], y_groups, count)
        present = (w_x.sum(1) > 0) & (w_y.sum(1) > 0)
        batch = (count,)

    value = x.new_zeros(x.shape[0])
    normal = []
    for name, w in (("x", w_x), ("y", w_y)):
        total = w.sum(1, keepdim=True)
        normal.append(w / torch.where(total == 0, 1.0, total))
        if unbiased:
            single = normal[-1].square().sum(1) >= 1
            single = single if present is None else single & present
            if check.values_visible(single) and bool(single.any()):
                raise ValueError(
                    f"unbiased=True needs at least two samples with positive weight in {name} "
                    "(in each group present on both sides)"
                )
    w_x, w_y = normal
    few, w_few = x, w_x
    if real_rows is not None and real_rows < x.shape[1]:
        few, w_few = x[:, :real_rows], w_x[:, :real_rows]
        # Plain samples here, so only an absent group has none of positive weight.
        total = w_few.sum(1, keepdim=True)
        w_few = w_few / torch.where(total == 0, 1.0, total)
    for side, w in ((few, w_few), (y, w_y)):
        if side.shape[1] == 0:
            continue
        # Equal samples cancel to the last bit where all three terms are formed alike.
        twin = (side, w) if x.shape == y.shape else (None, None)
        term = ops.kernel_sums(side, twin[0], w, twin[1], scale.to(dtype), chunk_size)
        if unbiased:
            share = w.square().sum(1)
            if present is not None:
                share = torch.where(present, share, 0.0)
            term = term / (1 - share)
        value = value + 0.5 * term
    value = value - ops.kernel_sums(x, y, w_x, w_y, scale.to(dtype), chunk_size)
    if not unbiased and real_rows is None:
        # The terms of near-equal samples cancel to a rounding of either sign; the slope stays.
        value = value + (value.clamp_min(0) - value).detach()
    if present is None:
        return value.reshape(batch)
    value = torch.where(present, value, 0.0)
    if reduction == "none":
        return value
    if check.values_visible(present) and not bool(present.any()):
        raise ValueError("x_groups and y_groups have no group in common: nothing to compare")
    return value.sum() / (present.sum() if reduction == "mean" else 1)


def _center(x: Tensor, y: Tensor) -> Tensor:
    """The mean of all rows, (D,), without a gradient; any point near them would do."""
    total = x.detach().sum((0, 1)) + y.detach().sum((0, 1))
    return total / (x.shape[0] * (x.shape[1] + y.shape[1]))


def _as_scales(scale: object, x: Tensor) -> Tensor:
    """``(K, D)`` scales from a number, ``(D,)`` or ``(K, D)``."""
    dim = x.shape[-1]
    if not isinstance(scale, Tensor):
        dtype = _compute_dtype(x)
        return x.new_full((1, dim), check.check_positive(scale, "scale", dtype), dtype=dtype)
    scale = check.check_floating(scale, "scale")
    check.check_device(scale, "scale", x.device)
    if scale.ndim == 0:
        return scale.expand(1, dim)
    if scale.ndim > 2 or scale.shape[-1] != dim or scale.shape[0] == 0:
        raise ValueError(
            f"scale must be a number, ({dim},) or (K, {dim}), got {check.describe(scale)}"
        )
    return scale.unsqueeze(0) if scale.ndim == 1 else scale


def _by_group(x: Tensor, w: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows sorted into ``(G, n, D)``, padded to the largest group with weight 0."""
    # Not `bincount`: its own look at the values would be a second wait for an accelerator.
    sizes = groups.new_zeros(count).index_add(0, groups, torch.ones_like(groups))
    order = torch.argsort(groups, stable=True)
    longest = int(sizes.max())
    start = torch.cumsum(sizes, 0) - sizes
    slot = torch.arange(longest, device=x.device)
    valid = slot < sizes.unsqueeze(1)  # (G, n)
    rows = order[(start.unsqueeze(1) + slot).clamp_max(len(groups) - 1)]
    return x[rows], torch.where(valid, w[rows], 0.0)


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
    if not (type(scale) in (int, float) and scale == 0):
        scale = check.check_positive(scale, "scale")
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
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def unit_rows(x: Tensor, name: str = "x", *, part: bool = False) -> Tensor:
    """Rows of ``x (*, N, D)`` scaled to length 1, in float32 or better; a zero row stays zero."""
    x = check.check_samples(x, name, part=part)
    return torch.nn.functional.normalize(x.to(_compute_dtype(x)), dim=-1)
