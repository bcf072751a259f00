"""Random numbers: one generator for each purpose, all derived from one seed.

Most are drawn on the CPU, where a seed means the same for every device, and sent where they are
used.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def generator(seed: int, *purpose: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator that depends on `seed` and `purpose` only.

    Purposes are independent streams, so drawing more for one (say, another evaluation network)
    leaves the numbers of all the others as they were.
    """
    digest = hashlib.sha256(repr((seed, *map(str, purpose))).encode()).digest()
    # 63 bits: `manual_seed` takes a signed 64-bit number.
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor; a GPU goes on with its work meanwhile, and this process with its own.

    A plain `to` waits until the GPU has done all it was asked for. From pinned memory it need not.
    """
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Make every sum of a CPU run in one order, so that equal seeds give equal bits.

    Without it the slopes of ψ's scales, each the sum over many frequencies, are added in the order
    in which threads arrive. A GPU is left alone: resampling images has no such form there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
