"""A place that most rows of a set are near to, whatever the others hold."""

from __future__ import annotations

from torch import Tensor

#: Rows that a set's centre is the median of.
CENTRE_ROWS = 9


def middle(few: Tensor) -> Tensor:
    """In every coordinate the middle one of a few rows, ``(S, n, D)`` -> ``(S, 1, D)``.

    Where most rows are close together, so is this, whatever the others hold. Any point near would
    do.
    """
    return few.kthvalue(few.shape[1] // 2 + 1, 1, keepdim=True).values  # faster than the median


def centre(x: Tensor) -> Tensor:
    """The middle of rows evenly spaced in ``x (S, n, D)``, (S, 1, D); without a gradient."""
    return middle(x.detach()[:, :: max(1, x.shape[1] // CENTRE_ROWS)][:, :CENTRE_ROWS])
