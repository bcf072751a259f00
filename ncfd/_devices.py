"""What a device can hold."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


def widest_float(device: torch.device) -> torch.dtype:
    """float64, where there is one: Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(sums: Tensor, device: torch.device) -> Tensor:
    """Sums in the widest type that ``device`` has; neither device sees a type that it lacks."""
    wide = widest_float(device)
    narrows = wide == torch.float32
    return sums.to(wide).to(device) if narrows else sums.to(device).to(wide)


def constant(make: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """Keep the tensors that ``make`` returns for its last arguments, which are hashable.

    What is made under a mode (fake tensors, a tracer) is that mode's own: it is made anew there,
    and never kept.
    """
    kept = lru_cache(maxsize=16)(make)

    @wraps(make)
    def found(*args: *Ts) -> R:
        watched = torch._C._len_torch_dispatch_stack() > 0
        return make(*args) if watched else kept(*args)

    return found
