"""From phases to cosines and sines, in the form that costs least on each device.

A block of phases θ ``(b, n, F)`` is held as something else where that is cheaper: on a CPU as
``u = tan(θ/2)``, since

    sin θ = u / (½ + ½u²)        cos θ = 1 - u sin θ

make one transcendental function serve cosine and sine of the forward pass and the slope of the
backward pass; each of them costs as much as ten multiplications. On an accelerator, where every
operation is a trip to memory, θ itself is held and the cosine taken three times.

Both are accurate to rounding everywhere: near θ = π, where u is large, an error in u turns the
point by ``2 du / (1 + u²)``, less than u's relative error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

#: Adds the rows of a block: ``(b, n, F) -> (b, G, F)``.
Reduce = Callable[[Tensor], Tensor]


class Circle(Protocol):
    """What a form has to offer. ``held`` is never changed; ``spare`` may be overwritten."""

    #: The product ``⟨t, x⟩`` is formed with this factor.
    factor: float

    def enter(self, theta: Tensor) -> None:
        """Turn ``factor · θ`` into what is held, in place."""

    def sums(
        self, held: Tensor, reduce: Reduce, count: Tensor | int, spare: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``(Σ w cos θ, Σ w sin θ)``, each ``(b, G, F)``; ``count`` is ``Σ w``."""

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Two ``(B, G, F)`` for ``slopes``, from ``a`` and ``b``, the gradients of the sums."""

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        """``b cos θ - a sin θ``, the gradient for θ, with what was prepared at each row."""

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """``Σ_f (a cos θ + b sin θ)``, the gradient for the weights, ``(b, n)``."""


def _one_plus_square(u: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.addcmul(u.new_ones(()), u, u, out=out)


class HalfTangent:
    """Holds ``u = tan(θ/2)``."""

    factor = 0.5

    def enter(self, theta: Tensor) -> None:
        theta.tan_()

    def sums(
        self, held: Tensor, reduce: Reduce, count: Tensor | int, spare: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sine = torch.addcmul(held.new_full((), 0.5), held, held, value=0.5, out=spare)
        torch.div(held, sine, out=sine)
        sin_sum = reduce(sine)
        return count - reduce(sine.mul_(held)), sin_sum

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        return grad_cos, -grad_sin

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        # a = first, -b = second; b cos - a sin = -b - 2 (a u - b) / (1 + u²)
        top = torch.addcmul(second, held, first)
        out = _one_plus_square(held, out)
        return torch.addcdiv(second, top, out, value=-2, out=out)

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # a cos + b sin = 2 (a + b u) / (1 + u²) - a
        top = torch.addcmul(first, held, second, value=-1)
        return top.mul_(2).div_(_one_plus_square(held)).sub_(first).sum(2)


class Angle:
    """Holds θ."""

    factor = 1.0

    def enter(self, theta: Tensor) -> None:
        pass

    def sums(
        self,
        held: Tensor,
        reduce: Reduce,
        count: Tensor | int,  # noqa: ARG002 - of the protocol
        spare: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        cosine = torch.cos(held, out=spare)
        cos_sum = reduce(cosine)
        return cos_sum, reduce(torch.sin(held, out=cosine))

    def prepare(self, grad_cos: Tensor, grad_sin: Tensor) -> tuple[Tensor, Tensor]:
        # a = R sin δ and b = R cos δ: the slope is R cos(θ + δ), one cosine instead of two.
        return torch.hypot(grad_cos, grad_sin), torch.atan2(grad_cos, grad_sin)

    def slopes(self, held: Tensor, first: Tensor, second: Tensor, out: Tensor | None) -> Tensor:
        return torch.add(held, second, out=out).cos_().mul_(first)

    def slopes_of_weights(self, held: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (held + second).sin_().mul_(first).sum(2)


_HALF_TANGENT, _ANGLE = HalfTangent(), Angle()


def circle(device: torch.device) -> Circle:
    """The form for tensors on ``device``."""
    return _HALF_TANGENT if device.type == "cpu" else _ANGLE
