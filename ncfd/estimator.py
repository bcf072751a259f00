"""A characteristic function gathered over a stream of samples, in memory that does not grow.

Letters: N samples, D features, F frequencies, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ncfd import _phi, _processes, _samples
from ncfd import _validation as check
from ncfd._devices import moved, widest_float
from ncfd._samples import Given

__all__ = ["CharacteristicFunction"]

_SUMS = ("cos_sum", "sin_sum", "total")


class CharacteristicFunction(nn.Module):
    r"""Streaming estimate of a characteristic function at fixed frequencies.

    .. math:: \hat\varphi(t) = \sum_n w_n e^{i\langle t, x_n\rangle} \Big/ \sum_n w_n

    Three sums are all there is to remember, ``O(F)`` numbers (``O(G F)`` with groups) however many
    samples pass. They add: a data set fed in any split and order, by any number of estimators that
    are merged, or by any number of processes, gives the same φ to rounding. The result serves as an
    known φ, for instance as the real side of :func:`ncfd.functional.ncfd_loss`.

    The sums are float64 (float32 on a device without float64); ``state_dict``, ``pickle``,
    ``copy.deepcopy`` and ``.to(device)`` work as for every module. They are no buffers: those are
    copied from the first process to all by ``DistributedDataParallel``. ``.half()``,
    ``.to(dtype)`` and the like change nothing: the sums belong to exactly these frequencies. No
    gradient flows through the stream.

    Args:
        t: frequencies ``(F, D)``, in radians per unit of the samples.
        num_groups: G, for one φ per group (class); default: one for all samples.

    Raises:
        TypeError: ``t`` is not a floating-point tensor, ``num_groups`` not an int.
        ValueError: ``t`` is empty or not ``(F, D)``, ``num_groups`` < 1.

    Example:
        >>> t = torch.tensor([[0.0], [1.0], [2.0]])
        >>> stream = CharacteristicFunction(t)
        >>> for x in (torch.zeros(3, 1), torch.full((1, 1), torch.pi)):
        ...     stream.update(x)
        >>> stream.compute().real
        tensor([1.0000, 0.5000, 1.0000])

    Source: Feuerverger & Mureika, *The empirical characteristic function and its applications*,
    Annals of Statistics 5 (1977).
    """

    t: Tensor
    cos_sum: Tensor
    sin_sum: Tensor
    total: Tensor

    def __init__(self, t: Tensor, num_groups: int | None = None) -> None:
        super().__init__()
        t = check.check_floating(t, "t")
        if t.ndim != 2 or t.numel() == 0:
            raise ValueError(f"t must have shape (F, D), not empty, got {check.describe(t)}")
        self.num_groups = None if num_groups is None else check.check_num_groups(num_groups)
        # Half types cannot hold a phase; a copy, because a later change of t would spoil the sums.
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        self.register_buffer("t", t.detach().to(dtype, copy=True))
        shape = (t.shape[0],) if num_groups is None else (num_groups, t.shape[0])
        # In float64 10^7 additions cost no digit that float32 shows.
        zeros = torch.zeros(shape, dtype=widest_float(t.device), device=t.device)
        self.cos_sum, self.sin_sum = zeros, zeros.clone()
        # Σ w, that is the number of samples where there are no weights: () or (G,).
        self.total = zeros[..., 0].clone()

    @torch.no_grad()
    def update(
        self, x: Tensor, *, groups: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            x: ``(N, D)``, floating point, on the device of the estimator.
            groups: integer labels ``(N,)`` in ``[0, num_groups)``; required if and only if the
                estimator has groups.
            weights: ``(N,)``, non-negative, not all zero, on one scale in all calls; default: 1.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: shapes, devices, labels or weights that do not fit.
        """
        if groups is not None and self.num_groups is None:
            raise ValueError(
                "groups needs an estimator with groups: CharacteristicFunction(t, num_groups)"
            )
        if groups is None and self.num_groups is not None:
            raise ValueError(
                f"the estimator has num_groups={self.num_groups}: update needs groups, a label "
                "for each sample"
            )
        given = Given("x", x, weights, groups, alone=True)
        samples, t = _samples.piece_of_stream(given, self.t, self.num_groups, "estimator")
        [sums] = _phi.sums_of([samples], t)
        self.cos_sum += sums.cos
        self.sin_sum += sums.sin
        # Not the sums' own total: those of many calls want every digit.
        self.total += samples.weight(self.total.dtype)

    def compute(self) -> Tensor:
        """Return φ̂ of everything added so far.

        Returns:
            Complex ``(F,)``, or ``(G, F)`` with zeros for a group without samples; complex128 for
            float64 frequencies, else complex64.

        Raises:
            ValueError: no samples yet (seen on the CPU; elsewhere φ̂ is NaN, or 0 with groups).
        """
        if check.values_visible(self.total) and not bool((self.total != 0).any()):
            raise ValueError("the estimator has no samples yet; call update(x) before compute()")
        total = self.total.unsqueeze(-1)
        if self.num_groups is not None:
            total = torch.where(total == 0, torch.ones_like(total), total)
        return torch.complex(
            (self.cos_sum / total).to(self.t.dtype), (self.sin_sum / total).to(self.t.dtype)
        )

    @torch.no_grad()
    def merge(self, other: CharacteristicFunction) -> Self:
        """Add what another estimator has seen; ``other`` is left as it is.

        Args:
            other: an estimator at the same frequencies, with the same groups, on any device.

        Returns:
            The estimator itself.

        Raises:
            TypeError: ``other`` is not a ``CharacteristicFunction``.
            ValueError: its frequencies or groups differ.
        """
        if not isinstance(other, CharacteristicFunction):
            raise TypeError(f"other must be a CharacteristicFunction, got {check.describe(other)}")
        if self.num_groups != other.num_groups:
            raise ValueError(
                f"other must have num_groups={self.num_groups}, got {other.num_groups}"
            )
        if self.t.shape != other.t.shape or not _equal(self.t, other.t.to(self.t)):
            raise ValueError(
                "other must have the same frequencies t: sums at different frequencies do not add; "
                f"got t of {check.describe(other.t)} for {check.describe(self.t)}"
            )
        for mine, its in zip(self._sums(), other._sums(), strict=True):
            mine += its.to(mine)
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Forget all samples, keep the frequencies.

        Returns:
            The estimator itself.
        """
        for value in self._sums():
            value.zero_()
        return self

    @torch.no_grad()
    def all_reduce(self, process_group: torch.distributed.ProcessGroup | None = None) -> Self:
        """Add up the estimators of all processes; afterwards each holds the whole.

        Sums and weights are added, so the result is exact for parts of any size. A collective call:
        every process of the group takes part, once, after its last ``update``. A second call would
        count the samples of the other processes twice.

        Args:
            process_group: default: all processes.

        Returns:
            The estimator itself.

        Raises:
            TypeError: ``process_group`` is not one.
            ValueError: ``torch.distributed`` is not initialised, or the processes hold different
                frequencies.
        """
        _processes.check_initialized("all_reduce")
        group = _processes.check_group(process_group)
        # max(t) and -max(-t) over the processes are t itself only if all hold the same.
        extremes = torch.stack([self.t, -self.t])
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group)
        if not _equal(extremes[0], -extremes[1]):
            raise ValueError(
                "the processes hold different frequencies t; draw them from one seed on all, or "
                "broadcast them, before the estimators are built"
            )
        for value, whole in zip(self._sums(), _processes.add_up(self._sums(), group), strict=True):
            value.copy_(whole)
        return self

    def extra_repr(self) -> str:
        """Sizes, as ``print`` shows them."""
        F, D = self.t.shape
        groups = "" if self.num_groups is None else f", num_groups={self.num_groups}"
        return f"num_frequencies={F}, dim={D}{groups}"

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.cos_sum, self.sin_sum, self.total

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: getattr(self, name) for name in _SUMS}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        sums = {prefix + name: name for name in _SUMS}
        rest = {key: value for key, value in state_dict.items() if key not in sums}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for key, name in sums.items():
            mine, its = getattr(self, name), state_dict.get(key)
            if its is None:
                missing_keys += [key] if strict else []
            elif its.shape != mine.shape:
                error_msgs.append(
                    f"size mismatch for {key}: {tuple(its.shape)} in the state, "
                    f"{tuple(mine.shape)} here"
                )
            else:
                setattr(self, name, its.detach().to(mine, copy=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In modules stored by earlier versions the sums are buffers.
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's own
        for name in _SUMS:
            if name in self._buffers:
                setattr(self, name, self._buffers.pop(name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: ARG002 - the signature is shared
        # ``.to``, ``.half``, ``.cuda`` and the like all pass here. Only the device is taken over.
        device = fn(self.t.new_empty(0)).device
        self.t = self.t.to(device)
        for name in _SUMS:
            setattr(self, name, moved(getattr(self, name), device))
        return self


def _equal(t: Tensor, other: Tensor) -> bool:
    """Whether these are the same frequencies; NaN is NaN, as it will show in φ."""
    return torch.allclose(t, other, rtol=0, atol=0, equal_nan=True)
