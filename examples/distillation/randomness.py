"""Random numbers: one generator for each purpose, all derived from one seed."""

import hashlib

import torch


def generator(seed: int, *purpose: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator that depends on `seed` and `purpose` only.

    Purposes are independent streams, so drawing more for one (say, another evaluation network)
    leaves the numbers of all the others as they were.
    """
    digest = hashlib.sha256(repr((seed, *map(str, purpose))).encode()).digest()
    # 63 bits: `manual_seed` takes a signed 64-bit number.
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
