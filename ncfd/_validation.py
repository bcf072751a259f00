"""Every check of arguments and its message: the argument, the rule, what was received, the way out.

Checks of shapes, types and options run everywhere. Checks of values (labels, weights) run where
looking at them is free: on the CPU, in eager mode. On an accelerator they would force a
synchronisation, in a compiled graph a break, so they are left to the kernels there.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import Any, cast

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def describe(value: object) -> str:
    """Shape, dtype and device of a tensor; the type and value of anything else."""
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def values_visible(value: Tensor) -> bool:
    """Whether looking at the values costs nothing: eager, on the CPU, outside ``torch.func``."""
    return (
        not torch.compiler.is_compiling()
        and value.device.type == "cpu"
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def check_tensor(value: object, name: str) -> Tensor:
    """A tensor of any kind, but not a part of one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(value)}")
    if type(value) is not Tensor:
        # Imported only where one is in use: it would slow every import of the package.
        module = sys.modules.get("torch.distributed.tensor")
        if module is not None and isinstance(value, module.DTensor):
            raise TypeError(
                f"{name} must be a plain tensor, got a DTensor; if it is sharded over the samples "
                f"pass {name}.to_local() with a process_group, else {name}.full_tensor()"
            )
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got layout {value.layout}; "
            f"convert it first, for example {name}.to_dense()"
        )
    return value


def check_floating(value: object, name: str) -> Tensor:
    """A real floating-point tensor."""
    tensor = check_tensor(value, name)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a real floating-point tensor, got {describe(tensor)}; "
            f"convert it first, for example {name}.float()"
        )
    return tensor


def as_rows(x: Tensor, name: str) -> str:
    """How samples with leading dimensions are made rows, for the end of a message about them."""
    if x.ndim < 3:
        return ""
    if x.ndim == 3:
        return (
            f"; (V, N, D) is V sets with a value each, to be reduced by .mean(): as one set it is "
            f"{name}.flatten(0, 1), as V samples {name}.flatten(1)"
        )
    return (
        f"; feature maps (N, C, H, W) are samples as {name}.flatten(1): all but the last two "
        "dimensions count as a batch of sets"
    )


def check_samples(value: object, name: str, *, part: bool = False) -> Tensor:
    """Samples ``(*, N, D)`` with at least one feature and, unless a process's part, one row."""
    x = check_floating(value, name)
    if x.ndim < 2:
        hint = f"; one-dimensional samples are {name}.unsqueeze(-1)" if x.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (*, N, D), got {describe(x)}{hint}")
    if x.shape[-1] == 0 or (x.shape[-2] == 0 and not part) or 0 in x.shape[:-2]:
        raise ValueError(
            f"{name} must hold at least one sample and one feature, got {describe(x)}"
            f"{as_rows(x, name)}"
        )
    return x


def check_frequencies(value: object, x: Tensor, samples: str, name: str = "t") -> Tensor:
    """Frequencies ``(F, D)`` or ``(*, F, D)`` for ``samples``, which are ``x (*, N, D)``."""
    t = check_floating(value, "t")
    batch, dim = tuple(x.shape[:-2]), x.shape[-1]
    if t.ndim < 2 or t.shape[-1] != dim or (t.ndim > 2 and tuple(t.shape[:-2]) != batch):
        wanted = f"(F, {dim})"
        if batch:
            wanted += f" or {(*batch, 'F', dim)}".replace("'", "")
        raise ValueError(
            f"{name} must have shape {wanted} to match the samples, got {describe(t)}"
            f"{as_rows(x, samples)}"
        )
    if t.shape[-2] == 0:
        raise ValueError(f"{name} must hold at least one frequency, got {describe(t)}")
    check_device(t, "t", x.device)
    return t


def check_device(value: Tensor, name: str, device: torch.device) -> None:
    """On the device of the samples."""
    if value.device != device:
        raise ValueError(
            f"{name} must be on {device} like the samples, got {value.device}; "
            f"move it with {name}.to({str(device)!r})"
        )


def check_weights(
    value: object, name: str, x: Tensor, samples: str, *, part: bool = False
) -> Tensor:
    """Weights ``(*, N)`` of ``samples``, which are ``x``; non-negative and not all zero.

    Their values are left for later with ``part``.
    """
    w = check_floating(value, name)
    if w.shape != x.shape[:-1]:
        raise ValueError(
            f"{name} must have shape {tuple(x.shape[:-1])}, one weight a sample, got {describe(w)}"
            f"{as_rows(x, samples)}"
        )
    check_device(w, name, x.device)
    if values_visible(w) and not part:
        if bool((w < 0).any()):
            raise ValueError(f"{name} must be non-negative, got a minimum of {w.min().item():g}")
        if bool((w == 0).all(-1).any()):
            raise ValueError(f"{name} must not be all zero: at least one sample has to count")
    return w


def check_num_groups(value: object) -> int:
    """A positive count of groups."""
    return check_count(value, "num_groups")


def check_groups(
    value: object, num_groups: object, name: str, x: Tensor, samples: str, *, part: bool = False
) -> tuple[Tensor, int]:
    """Labels ``(N,)`` in ``[0, num_groups)`` of ``samples``, ``x (N, D)``; returned as int64.

    The values of a process's part are left for later.
    """
    groups = check_tensor(value, name)
    if num_groups is None:
        raise ValueError(f"{name} needs num_groups, the number of groups; it is never guessed")
    count = check_num_groups(num_groups)
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise TypeError(f"{name} must hold integer labels, got {describe(groups)}")
    if x.ndim != 2:
        raise ValueError(
            f"{name} needs samples of shape (N, D), got {describe(x)}{as_rows(x, samples)}; "
            "sets of a batch can be groups with numbers of their own"
        )
    if groups.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape {tuple(x.shape[:1])}, one label a sample, "
            f"got {describe(groups)}"
        )
    check_device(groups, name, x.device)
    if values_visible(groups) and not part:
        low, high = (int(v) for v in torch.aminmax(groups))
        if low < 0 or high >= count:
            raise ValueError(
                f"{name} must lie in [0, num_groups = {count}), got labels from {low} to {high}"
            )
    return groups.long(), count


def faults_of_part(
    weights: Tensor | None, groups: Tensor | None, count: int
) -> tuple[Tensor | None, tuple[float, float]]:
    """Labels made harmless, and whether there were negative weights and labels out of range.

    One process must not raise what the others cannot see: they would wait for it in the next
    collective. The two numbers add over processes, and then all raise, or none.
    """
    negative = stray = False
    if weights is not None and values_visible(weights):
        negative = bool((weights < 0).any())
    if groups is not None and values_visible(groups):
        fits = (groups >= 0) & (groups < count)
        stray = not bool(fits.all())
        groups = torch.where(fits, groups, 0) if stray else groups
    return groups, (float(negative), float(stray))


def check_common_frequencies(mark: Tensor, processes: int, name: str) -> None:
    """The same frequencies on all: by the sums over processes of their total, its square, Σ|t|."""
    first, second, size = mark.tolist()
    # A variance above rounding: equal frequencies give equal totals.
    if second * processes - first**2 > (1e-6 * size) ** 2:
        raise ValueError(
            f"{name} must be the same on all processes of the process_group; draw it from "
            "one seed on all, or broadcast it"
        )


def check_whole(name: str, faults: Tensor, total: Tensor | None) -> None:
    """What was left for later of the parts of all processes; ``total`` is their weight."""
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
    if total is not None and bool((total == 0).any()):
        raise ValueError(
            f"{name} must hold a sample of positive weight on some process of the process_group"
        )


def too_few(name: str) -> ValueError:
    """A U-statistic of one sample."""
    return ValueError(
        f"unbiased=True needs at least two samples with positive weight in {name} "
        "(in each group present on both sides)"
    )


def check_frequency_weights(value: object, t: Tensor, reduction: str) -> Tensor:
    """Weights ``(F,)`` of frequencies ``(*, F, D)``, in their dtype; of a mean, in proportion."""
    w = check_floating(value, "frequency_weights")
    if w.shape != t.shape[-2:-1]:
        raise ValueError(
            f"frequency_weights must have shape ({t.shape[-2]},), one a frequency, "
            f"got {describe(w)}"
        )
    check_device(w, "frequency_weights", t.device)
    if values_visible(w) and (bool((w < 0).any()) or not bool((w != 0).any())):
        raise ValueError("frequency_weights must be non-negative and not all zero")
    if reduction == "mean":  # their sum may leave the range of the dtype
        w = w.to(torch.promote_types(w.dtype, t.dtype))
        w = w / w.detach().amax()
    return w.to(t.dtype)


def check_common_groups(present: Tensor, x: str, y: str) -> None:
    """Whether there is anything to compare: groups present on both sides, ``(G,)``."""
    if values_visible(present) and not bool(present.any()):
        raise ValueError(f"{x}_groups and {y}_groups have no group in common: nothing to compare")


def check_alpha(value: object) -> float:
    """The weight of the amplitude term, a number in [0, 1]."""
    if type(value) is float and 0 <= value <= 1:  # nearly always; the rest takes longer
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"alpha must be a number in [0, 1], got {describe(value)}")
    if not 0 <= cast(Any, value) <= 1:
        raise ValueError(f"alpha must be in [0, 1] (1 is amplitude only), got {value}")
    return float(value)


def check_reduction(value: object) -> str:
    """One of ``REDUCTIONS``."""
    return check_one_of(value, "reduction", REDUCTIONS)


def check_flag(value: object, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return value


def check_count(value: object, name: str) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    count = cast(int, value)
    if not 1 <= count <= sys.maxsize:
        raise ValueError(f"{name} must be at least 1, and fit an index, got {count}")
    # A graph's number stays one; NumPy's become Python's.
    return count if isinstance(count, torch.SymInt) else int(count)


def check_chunk_size(value: object) -> int | None:
    """Rows held at once: a positive int, or None."""
    return None if value is None else check_count(value, "chunk_size")


def check_real_rows(value: object, unbiased: bool, weights: object, **sides: Tensor) -> int:
    """Rows for the pairs of real samples; none only where nobody wants their gradient."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"real_rows must be an int or None, got {describe(value)}")
    count = int(value)
    if count < 0:
        raise ValueError(f"real_rows must be at least 0, got {value}")
    if weights is not None:
        raise ValueError("real_rows takes the first rows of x as a sample: leave x_weights out")
    if count == 1 and unbiased:
        raise ValueError("real_rows must be 0 or at least 2 with unbiased=True, got 1")
    for name, side in sides.items():
        if count == 0 and side.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"real_rows=0 leaves out a term that the gradient of {name} needs; "
                f"pass a few hundred, or {name}.detach()"
            )
    return count


def check_unbiased(unbiased: bool, squared: bool, alpha: float) -> None:
    """The U-statistic exists for the squared, evenly weighted form only."""
    if unbiased and not squared:
        raise ValueError(
            "unbiased=True needs squared=True: the U-statistic can be negative and has no root"
        )
    if unbiased and alpha != 0.5:
        raise ValueError(
            f"unbiased=True needs alpha=0.5, got {alpha}: only ½|φx - φy|² has a U-statistic here"
        )


def check_positive(value: object, name: str, dtype: torch.dtype = torch.float64) -> float:
    """A positive finite number, also when rounded to ``dtype``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a positive number, got {describe(value)}")
    number = _as_float(value)
    info = torch.finfo(dtype)
    if not info.tiny <= number <= info.max:
        raise ValueError(f"{name} must be positive and finite in {dtype}, got {describe(value)}")
    return number


def check_one_of(value: object, name: str, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {allowed}, got {describe(value)}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    return value


def check_between(value: object, name: str, low: float, high: float) -> float:
    """A number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number in [{low}, {high}], got {describe(value)}")
    number = _as_float(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return number


def _as_float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an int larger than any float
        return math.inf


def check_generator(generator: Any, device: torch.device) -> None:
    """A generator on the module's device, or on the CPU (drawn there, then moved)."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {describe(generator)}")
    if generator.device.type not in ("cpu", device.type):
        raise ValueError(
            f"generator must be on {device} or on the CPU, got one on {generator.device}"
        )


def check_seed(value: Any) -> int:
    """An integer that a generator takes."""
    try:
        seed = operator.index(value)
    except (TypeError, RuntimeError):  # torch's own, of a tensor without values
        raise TypeError(f"seed must be an int, got {describe(value)}") from None
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be an integer of 64 bits, got {seed}")
    return seed
