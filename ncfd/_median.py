"""A scale from the data: one over the median distance between its rows.

Letters: N samples, D features, G groups; S sets (of a batch, or groups), n rows of each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncfd import _processes
from ncfd._centre import CENTRE_ROWS, middle
from ncfd._devices import widest_float

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Rows of a set that are looked at, evenly spaced; half as many from 2048 features on, where they
#: cost more and tell as much. The median of their pairs is that of the law to 4 % (one standard
#: deviation) for normal rows of one feature, and to 1 % of sixteen.
MOST_ROWS = 512

#: Differences of entries that are formed one by one; beyond, distances come from products, several
#: times as fast, and the squares of rows far from the centre cancel in them.
_DIRECT = 2**22

#: Entries of distances and rows held at once, unless one set has more: small blocks are faster.
_MOST_ENTRIES = 2**20


@torch.no_grad()
def inverse_median_distance(
    x: Tensor,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    weights: Tensor | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """``1 / median |x_i - x_j|`` of a set of rows, of each set of a batch, or of each group.

    The median is that of the pairs of different rows among at most ``MOST_ROWS`` evenly spaced
    ones (of an even number of pairs the mean of the middle two, as in NumPy). Pairs of equal rows
    are left out: rows that repeat, or are mostly zero, would make it 0. Where nothing is left,
    because all rows are equal or there are fewer than two, the factor is 1: frequencies then stay
    in the unit they are drawn in, which for rows that do not differ is as good as any. A NaN or an
    infinity in a row that is looked at makes the factor NaN.

    Distances are those of the rows less a robust centre, in float64 (float32 on a device without
    it) and in units of the largest entry, so that neither the place of the data nor its magnitude
    matters, nor a few absurd rows.

    Args:
        x: rows ``(*, N, D)``, or ``(N, D)`` with groups.
        groups: labels ``(N,)`` in ``[0, num_groups)``.
        num_groups: G.
        weights: ``(*, N)``. Rows of weight 0 are absent, whatever they hold; other weights count
            alike.
        process_group: processes whose rows make up the sets, those of the first one first. The
            rows that are looked at are then brought to all, so that all have one factor, that of
            one process with the whole batch.

    Returns:
        ``(*,)``, or ``(G,)`` with groups; without gradient, float64 for float64 rows, else
        float32.
    """
    x = x.detach()
    N, D = x.shape[-2:]
    if groups is None:
        shape, S = x.shape[:-2], math.prod(x.shape[:-2])
        label = torch.arange(S, device=x.device).repeat_interleave(N)
    else:
        assert num_groups is not None
        shape, S, label = torch.Size([num_groups]), num_groups, groups.long()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weights is not None:
        label = torch.where(weights.reshape(-1) != 0, label, S)  # absent: a set of their own
    in_order = groups is None and weights is None
    order = torch.arange(len(label), device=x.device) if in_order else label.argsort(stable=True)
    counts = label.new_zeros(S + 1).index_add(0, label, torch.ones_like(label))
    starts = (counts.cumsum(0) - counts)[:S]
    counts = counts[:S]
    total, before = _over_processes(counts, process_group)
    rows, found, seen = x.reshape(-1, D), [], []
    equal = groups is None and process_group is None
    most = MOST_ROWS if D < 2048 else MOST_ROWS // 2
    for sets, n in _alike(total, min(N, most) if equal else None, most):
        for part in torch.split(sets, max(1, _MOST_ENTRIES // (n * (n + D)))):
            picked, present = _evenly(total[part], n)
            own = picked - before[part].unsqueeze(1)
            index = (starts[part].unsqueeze(1) + own).clamp(0, max(0, len(order) - 1))
            chosen = rows[order[index]] if len(order) else x.new_zeros(*index.shape, D)
            if process_group is not None:
                mine = (own >= 0) & (own < counts[part].unsqueeze(1))
                chosen = torch.where(mine.unsqueeze(-1), chosen, 0)
                (chosen,) = _processes.add_up([chosen], process_group)
            found.append(_of_sets(chosen, None if equal and in_order and n <= N else present))
            seen.append(part)
    info = torch.finfo(dtype)
    # Normal numbers multiply it: leave them room.
    factor = torch.cat(found).clamp(info.tiny, info.max / 1024).to(dtype)
    return factor[torch.argsort(torch.cat(seen))].reshape(shape)


def _over_processes(counts: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Rows of each set on all processes, and on those before this one."""
    if group is None:
        return counts, torch.zeros_like(counts)
    table = counts.new_zeros(group.size(), len(counts))
    table[group.rank()] = counts
    (table,) = _processes.add_up([table], group)
    return table.sum(0), table[: group.rank()].sum(0)


def _alike(counts: Tensor, rows: int | None, most: int) -> list[tuple[Tensor, int]]:
    """Sets of about the same number of rows, and for how many of them to make room.

    Unless all have ``rows``, they are sorted by size, so that the cost follows the rows there are;
    on an accelerator this waits for their sizes.
    """
    if rows is not None:
        return [(torch.arange(len(counts), device=counts.device), max(2, rows))]
    by_width: dict[int, list[int]] = {}
    for g, count in enumerate(counts.tolist()):
        width = 1 << (max(2, min(count, most)) - 1).bit_length()
        by_width.setdefault(width, []).append(g)
    return [(torch.tensor(sets, device=counts.device), n) for n, sets in by_width.items()]


def _evenly(counts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Positions ``(S, n)`` below ``counts``, all or evenly spaced, and which of them are there."""
    count, j = counts.unsqueeze(1), torch.arange(n, device=counts.device)
    picked = torch.where(count > n, j * count // n, torch.minimum(j, (count - 1).clamp_min(0)))
    return picked, j < count


def _of_sets(rows: Tensor, present: Tensor | None) -> Tensor:
    """``(S,)`` factors of sets of rows ``(S, n, D)``; of all, or of those that are ``present``."""
    S, n, D = rows.shape
    wide = widest_float(rows.device)
    may_overflow = rows.dtype == wide  # squares of narrower ones stay in range
    rows = rows.to(wide)
    # Squares of rows about it do not cancel.
    counts = (
        rows.new_full((S, 1), n, dtype=torch.int64) if present is None else present.sum(1, True)
    )
    few = torch.arange(CENTRE_ROWS, device=rows.device) * counts // CENTRE_ROWS
    few = few.unsqueeze(-1).expand(-1, -1, D)
    rows = rows - middle(rows.gather(1, few))
    if present is not None:
        rows = rows.masked_fill(~present.unsqueeze(-1), 0)
    unit = rows.new_ones(S)
    if may_overflow:
        largest = rows.abs().flatten(1).amax(1)
        unit = torch.where(largest > 0, largest, 1)
        rows = rows / unit[:, None, None]
    i, j = torch.triu_indices(n, n, 1, device=rows.device)  # every pair once
    if n * n * D <= _DIRECT:
        distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[:, i, j]
        apart = distance > 0
    else:
        with torch.autocast(rows.device.type, enabled=False):
            product = rows @ rows.mT  # (S, n, n)
        squares = product.diagonal(dim1=1, dim2=2)
        both = squares[:, i] + squares[:, j]
        distance = both - 2 * product[:, i, j]  # squared
        apart = distance > 32 * torch.finfo(wide).eps * both  # equal rows differ by rounding
        distance = torch.where(apart, distance, 0).sqrt()
    if present is not None:
        apart = apart & present[:, i] & present[:, j]
    distance = torch.where(apart, distance, torch.nan)
    # PyTorch takes the lower one of the middle two.
    median = (distance.nanmedian(1).values - (-distance).nanmedian(1).values) / 2
    factor = torch.where(median.isnan(), 1.0, 1 / (median * unit))
    return torch.where(rows.flatten(1).sum(1).isfinite(), factor, torch.nan)
