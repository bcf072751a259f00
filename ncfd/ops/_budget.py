"""How much memory the sums may take: the numbers to change when there is more or less of it."""

from __future__ import annotations

#: Bytes, by what they hold; assign an entry to change it (``ncfd.ops.BUDGET["kept"] = 0``).
#: No entry changes a value beyond rounding.
BUDGET: dict[str, int] = {
    # Phases kept from forward to backward, for each side; larger ones are formed again in blocks.
    "kept": 256 * 2**20,
    # The kept phases lie in tensors of this size on the CPU, which its allocator uses again.
    "piece": 8 * 2**20,
    # Cosines and sines of both sides, kept where they are so few that calls set the pace.
    "few": 2**18,
    # One block of phases on the CPU: inside a core's cache where the cosines set the pace (small
    # D), longer where the product does.
    "block_small_dim": 2 * 2**20,
    "block_large_dim": 32 * 2**20,
    # One block of phases on an accelerator: few launches.
    "block_accelerator": 256 * 2**20,
    # One block of kernel values in the closed form.
    "pairs": 64 * 2**20,
}

#: Below this many features the cosines, not the product, set the pace on a CPU.
SMALL_DIM = 192
