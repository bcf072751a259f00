"""From sums to φ, and everything that adds: over chunks, groups, streams and processes.

The sums come from :mod:`ncfd.ops`, already checked samples from :mod:`ncfd._samples`. A complex
number is a pair of real tensors here.

Letters: N samples, D features, F frequencies, G groups, ``*`` leading batch dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ncfd import _processes, ops
from ncfd import _validation as check
from ncfd._devices import widest_float
from ncfd._samples import Known, Pair, Samples


class Phi(NamedTuple):
    """A characteristic function at F frequencies, and what is known about its estimate."""

    re: Tensor  # (*, F) or (G, F)
    im: Tensor
    #: Which groups have samples, (G,); None where there are no groups.
    present: Tensor | None
    #: Σ of squared normalised weights, (*, 1) or (G, 1): 1/N for plain samples, 0 for an exact φ.
    share: Tensor | float
    rows: None = None

    def phi(self) -> Phi:
        """Itself: the sums of what was given as φ are not known."""
        return self


class Sums(NamedTuple):
    """What is known of samples at F frequencies. Everything in it adds: over any cut of a batch."""

    cos: Tensor  # Σ w cos⟨t, x⟩: (*, F), or (G, F) with groups
    sin: Tensor
    total: Tensor | float  # Σ w: (*, 1), or (G,) with groups; N where nothing else was given
    squares: Tensor | float  # Σ w², likewise
    grouped: bool

    @property
    def rows(self) -> float | None:
        """N where every sample counts once and there are no groups."""
        return None if isinstance(self.total, Tensor) else self.total

    def phi(self) -> Phi:
        """φ̂: the sums over their weight."""
        cos, sin, total, squares, grouped = self
        if not isinstance(total, Tensor) or not isinstance(squares, Tensor):
            # Not squares / total²: its range is beyond the exporter, which has to know it below 1.
            return Phi(cos / total, sin / total, None, 1.0 / total)
        if not grouped:
            return Phi(cos / total, sin / total, None, squares / total.square())
        present = total != 0  # a NaN is there, and shows
        # An empty group: 0 / 1 = 0, and nothing to differentiate.
        total = torch.where(total == 0, 1.0, total).unsqueeze(1)
        return Phi(cos / total, sin / total, present, squares.unsqueeze(1) / total.square())


def of_pair(
    pair: Pair,
    chunk_size: int | None,
    process_group: torch.distributed.ProcessGroup | None,
    name_of_t: str = "t",
) -> tuple[Sums | Phi, Sums]:
    """The real and the synthetic side of a comparison."""
    sums = sums_of(pair.samples, pair.t, chunk_size)
    if process_group is not None:
        sums = of_all_processes(pair.samples, sums, pair.t, process_group, name_of_t)
    known = [Phi(*known, 0.0) for known in pair.known]
    real: Sums | Phi = known[0] if known else sums[0]
    return real, sums[-1]


def of_pair_apart(
    pair: Pair,
    known_at_fixed_t: tuple[Known, ...],
    process_group: torch.distributed.ProcessGroup | None,
    name_of_t: str = "t",
) -> tuple[tuple[Sums | Phi, Sums], tuple[Sums | Phi, Sums]]:
    """:func:`of_pair` twice, formed once: for the samples, and for the frequencies.

    The gradient of the first reaches what is compared and its weights only, that of the second the
    frequencies only. ``known_at_fixed_t`` is the known φ of the pair at frequencies that want no
    gradient.
    """
    if any(side.x.shape[-2] == 0 for side in pair.samples):
        # A process without samples on a side: zeros there, in the graph all the same.
        fixed_samples = [
            side._replace(
                x=side.x.detach(), weights=None if side.weights is None else side.weights.detach()
            )
            for side in pair.samples
        ]
        both = [*sums_of(pair.samples, pair.t.detach()), *sums_of(fixed_samples, pair.t)]
    else:
        given = [ops.Side(side.x, side.weights, side.groups) for side in pair.samples]
        halves = ops.sums_apart(given, pair.t, pair.samples[0].num_groups)
        both = [
            _weighed(side, *sums)
            for half in halves
            for side, sums in zip(pair.samples, half, strict=True)
        ]
    if process_group is not None:
        samples = [*pair.samples, *pair.samples]
        both = of_all_processes(samples, both, pair.t, process_group, name_of_t)
    first, second = both[: len(pair.samples)], both[len(pair.samples) :]
    if not pair.known:
        return (first[0], first[-1]), (second[0], second[-1])
    [at_t], [fixed] = pair.known, known_at_fixed_t
    # The same numbers; what flows back to the parameters of a distribution cancels to exactly 0.
    re, im = at_t.re - fixed.re + fixed.re.detach(), at_t.im - fixed.im + fixed.im.detach()
    return (Phi(*fixed, 0.0), first[-1]), (Phi(re, im, at_t.present, 0.0), second[-1])


def sums_of(sides: Sequence[Samples], t: Tensor, chunk_size: int | None = None) -> list[Sums]:
    """The sums of one side, or of two of one shape, which cost less together."""
    if any(side.x.shape[-2] == 0 for side in sides):
        pairs = [_alone(side, t, chunk_size) for side in sides]
    else:
        given = [ops.Side(side.x, side.weights, side.groups) for side in sides]
        pairs = ops.sums_of(given, t, sides[0].num_groups, chunk_size)
    return [_weighed(side, *sums) for side, sums in zip(sides, pairs, strict=True)]


def _alone(side: Samples, t: Tensor, chunk_size: int | None) -> ops.Pair:
    """The sums of a process's part, which may be empty."""
    _, x, weights, groups, num_groups, _ = side
    if x.shape[-2] > 0:
        return ops.sums_of([ops.Side(x, weights, groups)], t, num_groups, chunk_size)[0]
    # Zeros, but in the graph: DistributedDataParallel waits for the gradient of every input.
    nothing = x.sum() + (0 * t).sum(-1)  # (F,) or (*, F)
    if weights is not None:
        nothing = nothing + weights.sum()
    shape = x.shape[:-2] if num_groups is None else (num_groups,)
    nothing = nothing.expand(*shape, t.shape[-2])
    return nothing, nothing


def _weighed(samples: Samples, cos: Tensor, sin: Tensor) -> Sums:
    """The sums with the weight that they carry."""
    _, x, weights, groups, num_groups, _ = samples
    rows = x.shape[-2]
    if weights is None and groups is None:
        return Sums(cos, sin, rows, rows, False)
    w = x.new_ones(rows) if weights is None else weights
    if groups is None or num_groups is None:
        total, squares = w.sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)  # (*, 1)
        return Sums(cos, sin, total, squares, False)
    zeros = w.new_zeros(num_groups)
    total = zeros.scatter_add(0, groups, w)  # (G,)
    squares = zeros.scatter_add(0, groups, w.square())
    return Sums(cos, sin, total, squares, True)


def of_all_processes(
    samples: Sequence[Samples],
    sums: Sequence[Sums],
    t: Tensor,
    group: torch.distributed.ProcessGroup,
    name_of_t: str,
) -> list[Sums]:
    """The sums of the whole batch from those of this process's part, by one all-reduce.

    Whatever is wrong with values is decided afterwards, on the same numbers everywhere, so that
    all processes raise or none does.
    """
    values: list[Tensor] = []
    for side, part in zip(samples, sums, strict=True):
        shape = part.cos.shape[:1] if part.grouped else (*part.cos.shape[:-1], 1)
        weighed = (
            v if isinstance(v, Tensor) else part.cos.new_full(shape, v)
            for v in (part.total, part.squares)
        )
        values += [part.cos, part.sin, *weighed, part.cos.new_tensor(side.faults)]
    visible = check.values_visible(t)
    mark = _processes.mark_of(t) if visible else t.new_zeros(3, dtype=widest_float(t.device))
    *values, mark = _processes.add_up([*values, mark], group)
    if visible:
        check.check_common_frequencies(mark, torch.distributed.get_world_size(group), name_of_t)
    whole = []
    for i, (side, part) in enumerate(zip(samples, sums, strict=True)):
        cos, sin, total, squares, faults = values[5 * i : 5 * i + 5]
        if visible:
            check.check_whole(side.name, faults, None if part.grouped else total)
        whole.append(Sums(cos, sin, total, squares, part.grouped))
    return whole


def unbiased(x: Phi, y: Phi, names: tuple[str, str]) -> Tensor:
    """U-statistic of ``½ |φx - φy|²``: the diagonal pairs, each 1, taken out of both squares."""
    value = (x.re - y.re).square() + (x.im - y.im).square()
    present = common(x, y)
    for name, side in zip(names, (x, y), strict=True):
        share = side.share
        if isinstance(share, Tensor):
            single = share >= 1
            if present is not None:
                single = single & present.unsqueeze(1)
            alone = check.values_visible(share) and bool(single.any())
            # Absent groups hold 0 or 1 here and are masked later: keep them finite.
            if present is not None:
                share = torch.where(present.unsqueeze(1), share, 0.0)
        else:
            alone = share >= 1
        if alone:
            raise check.too_few(name)
        value = value - (1 - side.re.square() - side.im.square()) * (share / (1 - share))
    return 0.5 * value


def signal(x: Phi, y: Phi) -> Tensor:
    """J at each frequency: the gap beyond the real side's noise, where ``|φx|²`` is beyond it.

    Without noise where φx is known; 0 where one real sample (of a group) tells nothing of it.
    """
    square = x.re.square() + x.im.square()
    share = x.share
    if isinstance(share, Tensor):
        single = share >= 1
        noise = (1 - square) * (share / torch.where(single, 1.0, 1 - share))
        strength = torch.where(single, 0.0, (square - noise).clamp_min(0))
    elif share >= 1:
        noise, strength = torch.zeros_like(square), torch.zeros_like(square)
    else:
        noise = (1 - square) * (share / (1 - share))
        strength = (square - noise).clamp_min(0)
    return ((x.re - y.re).square() + (x.im - y.im).square() - noise) * strength


def common(x: Phi, y: Phi) -> Tensor | None:
    """Groups present on both sides, (G,); a known φ without groups is present everywhere."""
    if x.present is None or y.present is None:
        return y.present if x.present is None else x.present
    return x.present & y.present
