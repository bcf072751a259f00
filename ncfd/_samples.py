"""The one door: whatever a caller compares becomes one small value, checked once.

Samples with weights and labels, a ``Distribution``, an already known φ: here they get one device,
one dtype and shapes that fit each other and the frequencies, and here every message about them is
written, under the names that the caller knows. Nothing below checks again.

Letters: N and M samples, D features, F frequencies, G groups, ``*`` leading batch dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ncfd import _validation as check
from ncfd._median import inverse_median_distance
from ncfd.distributions import closed_form


class Given(NamedTuple):
    """A side of a comparison as the caller gave it, and what the caller calls it."""

    name: str
    x: object  # samples, a Distribution or a known φ
    weights: Tensor | None = None
    groups: Tensor | None = None
    #: Scale the rows to length 1.
    unit: bool = False
    #: Weights and groups are arguments without the side's name before theirs.
    alone: bool = False

    def called(self, what: str) -> str:
        """The name of the argument ``what`` of this side."""
        return what if self.alone else f"{self.name}_{what}"

    def is_known(self) -> str | None:
        """What it is where φ itself is known, or None for samples."""
        if isinstance(self.x, Distribution):
            return "a Distribution"
        return "a known φ" if isinstance(self.x, Tensor) and self.x.is_complex() else None


class Samples(NamedTuple):
    """Samples that passed every check, in the dtype of the computation."""

    name: str
    x: Tensor  # (*, N, D)
    weights: Tensor | None  # (*, N)
    groups: Tensor | None  # (N,)
    num_groups: int | None
    #: Of a process's part: negative weights, labels out of range.
    faults: tuple[float, float] = (0.0, 0.0)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Σ w, added in ``dtype``: ``()``, or ``(G,)`` with labels."""
        w = self.x.new_ones(self.x.shape[:-1]) if self.weights is None else self.weights
        if self.groups is None or self.num_groups is None:
            return w.sum(dtype=dtype)
        return w.new_zeros(self.num_groups, dtype=dtype).index_add(0, self.groups, w.to(dtype))


class Known(NamedTuple):
    """A known φ at the frequencies of the comparison."""

    re: Tensor  # (*, F) or (G, F)
    im: Tensor
    #: Which groups have samples, (G,); None where all have.
    present: Tensor | None


class Pair(NamedTuple):
    """Both sides of a comparison: real and synthetic samples, or a known φ and the latter."""

    known: tuple[Known, ...]
    samples: tuple[Samples, ...]
    t: Tensor  # (F, D) or (*, F, D)


def pair(
    real: Given,
    synthetic: Given,
    t: Tensor,
    num_groups: int | None,
    *,
    part: bool = False,
    name_of_t: str = "t",
) -> Pair:
    """Both sides of a comparison at the frequencies ``t``.

    With ``part`` the samples are a process's part of a batch: it may be empty, and faults in its
    values are left for all processes to tell.
    """
    if real.is_known() is None:
        x, y = _matching_rows(real, synthetic, part)
        t = check.check_frequencies(t, x, real.name, name_of_t)
        dtype = compute_dtype(x, y, t)
        sides = (
            _described(real, x, num_groups, dtype, part=part),
            _described(synthetic, y, num_groups, dtype, part=part),
        )
        return Pair((), sides, cast(t, dtype))
    refuse_description(real)
    y = _rows(synthetic, part)
    t = check.check_frequencies(t, y, synthetic.name, name_of_t)
    dtype = compute_dtype(y, t, *([real.x] if isinstance(real.x, Tensor) else []))
    samples = _described(synthetic, y, num_groups, dtype, part=part)
    shape = (*(y.shape[:-2] if samples.groups is None else [samples.num_groups]), t.shape[-2])
    if isinstance(real.x, Distribution):
        known = _of_distribution(real.x, real.name, synthetic.name, t, shape, dtype)
    else:
        assert isinstance(real.x, Tensor)
        re, im = complex_parts(real.x, real.name)
        if re.shape != shape:
            raise ValueError(
                f"{real.name}, a known φ, must have shape {shape} to match "
                f"{synthetic.name} and {name_of_t}, got {check.describe(real.x)}"
                f"{check.as_rows(y, synthetic.name)}"
            )
        check.check_device(re, real.name, y.device)
        present = None if samples.groups is None else ((re != 0) | (im != 0)).any(-1)
        known = Known(re.to(dtype), im.to(dtype), present)
    return Pair((known,), (samples,), t.to(dtype))


def refuse_description(known: Given, num_groups: int | None = None) -> None:
    """A known φ has neither weights nor labels."""
    for what, value in (("weights", known.weights), ("groups", known.groups)):
        if value is not None:
            name = known.called(what)
            raise ValueError(
                f"{name} describes samples, but {known.name} is {known.is_known()}; "
                f"leave {name} out"
            )
    if num_groups is not None:
        raise ValueError("num_groups needs groups, and a Distribution has none")


def _of_distribution(
    law: Distribution, name: str, other: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Known:
    """The closed form at ``t``, one for each of ``shape``: (*, F) or (G, F)."""
    re, im = (v.to(dtype) for v in closed_form(law, t))
    if re.shape != shape and re.ndim != 1:
        raise ValueError(
            f"{name} has batch shape {tuple(law.batch_shape)}, which must be () or "
            f"{shape[:-1]} to match {other} (its batch, or the groups)"
        )
    return Known(re.expand(shape), im.expand(shape), None)


def two_sides(
    real: Given, synthetic: Given, num_groups: int | None, scale: Tensor
) -> tuple[Samples, Samples]:
    """Two sets of samples of one shape and device, in the dtype of them and of the scale."""
    x, y = _matching_rows(real, synthetic, False)
    dtype = compute_dtype(x, y, scale)
    return _described(real, x, num_groups, dtype), _described(synthetic, y, num_groups, dtype)


def beside_law(law: Given, synthetic: Given, num_groups: int | None, scale: Tensor) -> Samples:
    """The samples that stand beside a law, in the dtype of them and of the scale."""
    refuse_description(law)
    y = _rows(synthetic, False)
    return _described(synthetic, y, num_groups, compute_dtype(y, scale))


def _matching_rows(real: Given, synthetic: Given, part: bool) -> tuple[Tensor, Tensor]:
    y = _rows(synthetic, part)
    x = _rows(real, part)
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        given, rows = (real, x) if x.ndim > y.ndim else (synthetic, y)
        raise ValueError(
            f"{real.name} and {synthetic.name} must agree in all but the number of samples, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}{check.as_rows(rows, given.name)}"
        )
    check.check_device(y, synthetic.name, x.device)
    if (real.groups is None) != (synthetic.groups is None):
        given, missing = (real, synthetic) if synthetic.groups is None else (synthetic, real)
        raise ValueError(
            f"{given.called('groups')} needs {missing.called('groups')}: "
            "groups are matched group by group"
        )
    return x, y


def in_unit_of_real(
    real: Given,
    synthetic: Given,
    num_groups: int | None,
    process_group: torch.distributed.ProcessGroup | None,
) -> tuple[Given, Given]:
    """Both sides over the median distance of the real rows, of each group or batch entry.

    Frequencies in that unit see rows in it: ``⟨s t, x⟩ = ⟨t, s x⟩``. Nothing is remembered.
    """
    if real.is_known() is not None:
        raise ValueError(
            f'scale="median" is that of samples, but {real.name} is {real.is_known()}; give the '
            "sampler a number"
        )
    part = process_group is not None
    x, y = _matching_rows(real, synthetic, part)
    described = _described(real, x, num_groups, compute_dtype(x), part=part)
    factor = inverse_median_distance(
        described.x, described.groups, num_groups, described.weights, process_group
    )
    scaled = []
    for given, rows in ((real, x), (synthetic, y)):
        if given.groups is None:
            own = factor[..., None, None]
        else:
            groups, _ = check.check_groups(
                given.groups, num_groups, given.called("groups"), rows, given.name, part=part
            )
            own = factor[groups.clamp(0, len(factor) - 1)].unsqueeze(1)
        wide = torch.promote_types(compute_dtype(rows), own.dtype)
        product = (rows.to(wide) * own.to(wide)).to(compute_dtype(rows))
        scaled.append(given._replace(x=product, unit=False))
    first, second = scaled
    return first, second


def one_side(given: Given, t: Tensor, num_groups: int | None) -> tuple[Samples, Tensor]:
    """Samples ``(*, N, D)`` alone, and the frequencies in their dtype."""
    x = _rows(given, False)
    t = check.check_frequencies(t, x, given.name)
    dtype = compute_dtype(x, t)
    return _described(given, x, num_groups, dtype), t.to(dtype)


def piece_of_stream(
    given: Given, t: Tensor, num_groups: int | None, keeper: str
) -> tuple[Samples, Tensor]:
    """``(N, D)`` samples for ``keeper``, which holds sums at ``t`` and adds theirs."""
    x = check.check_samples(given.x, given.name)
    if x.ndim != 2 or x.shape[1] != t.shape[1]:
        raise ValueError(
            f"{given.name} must have shape (N, {t.shape[1]}) to match the frequencies, "
            f"got {check.describe(x)}{check.as_rows(x, given.name)}"
        )
    if x.device != t.device:
        raise ValueError(
            f"{given.name} must be on {t.device} like the {keeper}, got {check.describe(x)}; "
            "move one of them with .to(device)"
        )
    dtype = compute_dtype(x, t)
    x = _rows(given, False)
    # Weights of other calls are on the same scale as these, and unknown here.
    return _described(given, x, num_groups, dtype, rescale=False), cast(t, dtype)


def _rows(given: Given, part: bool) -> Tensor:
    x = check.check_samples(given.x, given.name, part=part)
    if given.weights is not None:
        w = check.check_weights(given.weights, given.called("weights"), x, given.name, part=part)
        absent = w == 0
        # Rows of weight 0 are absent whatever they hold: 0 · NaN is NaN, in the gradient too.
        if not check.values_visible(absent) or bool(absent.any()):
            x = torch.where(absent.unsqueeze(-1), x.new_zeros(()), x)
    return unit_rows(x) if given.unit else x


def _described(
    given: Given,
    x: Tensor,
    num_groups: int | None,
    dtype: torch.dtype,
    *,
    part: bool = False,
    rescale: bool = True,
) -> Samples:
    """Samples with their labels and weights, which :func:`_rows` has checked."""
    weights, groups = given.weights, given.groups
    if groups is not None:
        groups, num_groups = check.check_groups(
            groups, num_groups, given.called("groups"), x, given.name, part=part
        )
    elif num_groups is not None:
        name = given.called("groups")
        raise ValueError(f"num_groups needs {name}, got num_groups={num_groups} alone")
    faults = (0.0, 0.0)
    if part:
        groups, faults = check.faults_of_part(weights, groups, num_groups or 1)
    # Each input is cast once: two casts of a half tensor would round two partial gradients and
    # add them in half precision.
    if weights is not None and rescale and not part:
        # Only proportions count, in each group, and sums of squares leave the range of float32 at
        # 1e19 and 1e-19. Processes know no common maximum.
        weights = cast(weights, torch.promote_types(weights.dtype, dtype))
        fixed = weights.detach()
        if groups is None or num_groups is None:
            largest = fixed.amax(-1, keepdim=True)
        else:
            zeros = fixed.new_zeros(num_groups)
            largest = zeros.scatter_reduce(0, groups, fixed, "amax")[groups]
        weights = weights / torch.where(largest == 0, 1.0, largest)
    weights = None if weights is None else cast(weights, dtype)
    return Samples(given.name, cast(x, dtype), weights, groups, num_groups, faults)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x (*, N, D)`` scaled to length 1, in float32 or better; a zero row stays zero."""
    x = x.to(compute_dtype(x))
    largest = x.detach().abs().amax(-1, keepdim=True)
    # The squares of such entries leave the range of float32; the factor drops out of the result.
    extreme = ((largest > 1e9) & largest.isfinite()) | ((largest < 1e-9) & (largest > 0))
    return torch.nn.functional.normalize(x / torch.where(extreme, largest, 1.0), dim=-1)


def complex_parts(phi: object, name: str) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a complex tensor, in complex64 or better."""
    phi = check.check_tensor(phi, name)
    if not phi.is_complex():
        raise TypeError(f"{name} must be a complex tensor, got {check.describe(phi)}")
    if phi.dtype == torch.complex32:
        phi = phi.to(torch.complex64)
    return phi.real, phi.imag


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: half types never hold a phase."""
    for v in tensors:
        if v.dtype in (torch.float64, torch.complex128):
            return torch.float64
    return torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``: a cast that changes nothing takes as long as a sum over a small batch."""
    return x if x.dtype == dtype else x.to(dtype)
