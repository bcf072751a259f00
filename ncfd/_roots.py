"""Square roots that a gradient can pass: the slope at 0 is 0, not infinite.

Equal samples have a discrepancy of 0, which is where every matching ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncfd import _validation as check


def safe_root(value: Tensor) -> Tensor:
    r"""Square root with slope 0 where the value is 0, in place of an infinite one.

    For the root of a *mean* of squared discrepancies, as a distance between distributions has it:
    ``safe_root(ncfd_loss(x, y, t, squared=True))`` and ``safe_root(gaussian_ncfd(x, y))``.
    ``torch.sqrt`` makes NaN of the gradient of equal samples, ``0 · inf``. The root *inside* the
    mean, :func:`ncfd.functional.ncfd_loss` without ``squared``, needs nothing of this.

    Args:
        value: floating point, any shape.

    Returns:
        The root, of the shape and dtype of ``value``; 0 with slope 0 for values below 0 as well,
        which U-statistics have. NaN stays NaN. Twice differentiable.

    Raises:
        TypeError: ``value`` is not a floating-point tensor.

    Example:
        >>> from ncfd.functional import gaussian_ncfd
        >>> x = torch.ones(3, 2, requires_grad=True)
        >>> distance = safe_root(gaussian_ncfd(x, x.detach()))
        >>> distance.backward()
        >>> distance.item(), x.grad.abs().max().item()
        (0.0, 0.0)

    Source: this package.
    """
    return root(check.check_floating(value, "value"))


def root(value: Tensor) -> Tensor:
    """Square root with slope 0 at 0, so that equal inputs have a finite gradient."""
    positive = value > 0
    # `value * 0` keeps NaN a NaN and anything else 0.
    return torch.where(positive, torch.sqrt(torch.where(positive, value, 1.0)), value * 0)


def modulus(re: Tensor, im: Tensor) -> Tensor:
    """``|re + i im|``, with slope 0 at 0."""
    return root(re.square() + im.square())


class RootOfHalf(torch.autograd.Function):
    """``√½ |φx - φy|`` of plain samples, from their sums and numbers: the loss at α = ½.

    The same as :func:`root` of ``Chf_½`` in one step of the graph instead of thirteen, which
    for small batches take longer than the sums. With ``divisor``, added over the frequencies and
    divided by it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_cos: Tensor,
        x_sin: Tensor,
        N: int,
        y_cos: Tensor,
        y_sin: Tensor,
        M: int,
        divisor: int | None,
    ) -> Tensor:
        ctx.rows = N, M, divisor
        d_re, d_im = _gap(x_cos, y_cos, M / N), _gap(x_sin, y_sin, M / N)
        size = torch.hypot(d_re, d_im)
        ctx.save_for_backward(x_cos, x_sin, y_cos, y_sin, d_re, d_im, size)
        if divisor is not None:
            size = size.sum(-1)
        value: Tensor = size * (0.5**0.5 / M / (divisor or 1))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_cos, x_sin, y_cos, y_sin, d_re, d_im, size = ctx.saved_tensors
        N, M, divisor = ctx.rows
        if torch.is_grad_enabled():  # to be differentiated again: what was saved has no history
            d_re, d_im = _gap(x_cos, y_cos, M / N), _gap(x_sin, y_sin, M / N)
            size = modulus(d_re, d_im)
            size = torch.where(size == 0, 1.0, size)
        else:
            size = size.clamp_min(1e-30)  # where it is 0 so are both differences
        grad = grad * (-(0.5**0.5) / M / (divisor or 1))
        slope = (grad if divisor is None else grad.unsqueeze(-1)) / size
        y_re, y_im = slope * d_re, slope * d_im
        x_re = x_im = None
        if ctx.needs_input_grad[0]:
            x_re, x_im = y_re * (-M / N), y_im * (-M / N)
        return x_re, x_im, None, y_re, y_im, None, None


def _gap(x: Tensor, y: Tensor, ratio: float) -> Tensor:
    """Difference of two means, times the number of the second one's samples; 0 if equal."""
    return x - y if ratio == 1 else x * ratio - y


def eager() -> bool:
    """Neither in a graph, which fuses steps, nor under ``torch.func``, which composes them."""
    return (
        not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
    )
