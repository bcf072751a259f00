"""What a device can hold."""

import torch
from torch import Tensor


def widest_float(device: torch.device) -> torch.dtype:
    """float64, where there is one: Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(sums: Tensor, device: torch.device) -> Tensor:
    """Sums in the widest type that ``device`` has; neither device sees a type that it lacks."""
    wide = widest_float(device)
    narrows = wide == torch.float32
    return sums.to(wide).to(device) if narrows else sums.to(device).to(wide)
