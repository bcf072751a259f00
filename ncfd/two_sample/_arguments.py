"""What is asked for, checked: options, both sets of samples, frequencies that the caller brings.

Letters: N and M samples, D features, F frequencies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncfd import _validation as check
from ncfd._arrays import Samples, as_tensor
from ncfd.two_sample._unit import times_power

#: The fewest samples of a side that each method can do with.
SMALLEST = {"permutation": 2, "chi2": 5}


class Options(NamedTuple):
    """The options of :func:`ncfd.two_sample_test` that say how to test."""

    method: str
    n_permutations: int
    learn: bool
    num_frequencies: int | None
    scale: float | None
    learn_fraction: float

    def in_unit(self, k: int) -> Options:
        """For samples over 2^k: the ``scale`` of their frequencies is that much larger."""
        half = k // 2
        scale = None if self.scale is None else self.scale * 2.0**half * 2.0 ** (k - half)
        return self._replace(scale=scale)


def check_options(options: Options, given: bool) -> Options:
    """The options, right and free of contradictions; ``given``: the caller brings frequencies."""
    method, n_permutations, learn, num_frequencies, scale, learn_fraction = options
    if not isinstance(method, str):
        raise TypeError(f'method must be "permutation" or "chi2", got {check.describe(method)}')
    if method not in SMALLEST:
        raise ValueError(f'method must be "permutation" or "chi2", got {method!r}')
    n_permutations = check.check_count(n_permutations, "n_permutations")
    learn = check.check_flag(learn, "learn_frequencies")
    if given:
        for name, value in (("num_frequencies", num_frequencies), ("scale", scale)):
            if value is not None:
                raise ValueError(f"{name} describes default frequencies; leave out one of the two")
        if learn:
            raise ValueError(
                "learn_frequencies=True finds its own frequencies; leave frequencies out"
            )
    if num_frequencies is not None:
        num_frequencies = check.check_count(num_frequencies, "num_frequencies")
    if scale is not None:
        scale = check.check_positive(scale, "scale")
    learn_fraction = check.check_positive(learn_fraction, "learn_fraction")
    if learn_fraction >= 1:
        raise ValueError(f"learn_fraction must be in (0, 1), got {learn_fraction}")
    return Options(method, n_permutations, learn, num_frequencies, scale, learn_fraction)


def make_generator(seed: int | None) -> tuple[torch.Generator, int]:
    """A generator of the test's own, on the CPU: the same numbers for every device."""
    generator = torch.Generator()
    if seed is None:
        return generator, generator.seed()
    seed = check.check_seed(seed)
    return generator.manual_seed(seed), seed


def shuffled(n: int, generator: torch.Generator) -> Tensor:
    """The numbers below n in random order, on the CPU whatever the default device."""
    return torch.randperm(n, generator=generator, device="cpu")


def both_sides(x: Samples, y: Samples) -> tuple[Tensor, Tensor]:
    """Both sets as ``(N, D)`` and ``(M, D)`` of one dtype, and finite."""
    sides: list[Tensor] = []
    for name, value in (("x", x), ("y", y)):
        side = as_tensor(value, name)
        if side.ndim == 1:
            side = side.unsqueeze(1)
        if side.ndim != 2 or side.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N, D) or (N,), not empty, got {check.describe(side)}; "
                f"flatten further dimensions with {name}.reshape(len({name}), -1)"
            )
        if sides:
            check.check_device(side, name, sides[0].device)
        if side.is_meta:
            raise ValueError(f"{name} must have values, got {check.describe(side)}")
        bad = ~side.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{name} must be finite, got {int(bad.sum())} NaN or infinite values in "
                f"{int(bad.any(1).sum())} of {len(side)} rows; remove or impute them first"
            )
        sides.append(side)
    x, y = sides
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have the same features, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def given_frequencies(frequencies: Samples, x: Tensor, k: int) -> Tensor:
    """The caller's frequencies as ``(F, D)``, for samples over 2^k and in their dtype."""
    t = as_tensor(frequencies, "frequencies")
    D = x.shape[1]
    if t.ndim == 1 and D == 1:
        t = t.unsqueeze(1)
    if t.ndim != 2 or t.shape[1] != D or len(t) == 0:
        raise ValueError(
            f"frequencies must have shape (F, {D}) to match the samples, got {check.describe(t)}"
        )
    check.check_device(t, "frequencies", x.device)
    if not bool(t.isfinite().all()):
        raise ValueError("frequencies must be finite, got NaN or infinite values")
    return times_power(t.to(torch.promote_types(t.dtype, x.dtype)), k).to(x.dtype)


def split(
    side: Tensor, fraction: float, name: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random part of ``side`` to learn from, and the rest to test."""
    cut = round(fraction * len(side))
    if min(cut, len(side) - cut) < max(SMALLEST.values()):
        raise ValueError(
            f"{name} has {len(side)} samples, too few to learn from {cut} and test "
            f"{len(side) - cut}: each part needs 5; use learn_frequencies=False"
        )
    order = shuffled(len(side), generator).to(side.device)
    return side[order[:cut]], side[order[cut:]]


def check_sizes(x: Tensor, y: Tensor, method: str) -> None:
    """Enough samples for ``method`` on both sides."""
    for name, side in (("x", x), ("y", y)):
        if len(side) < SMALLEST[method]:
            raise ValueError(
                f'{name} must have at least {SMALLEST[method]} samples for method="{method}", '
                f"got {len(side)}"
            )
