"""Multi-formation: one stored image holds ρ² smaller ones.

`decode` turns N stored images (N, C, H, W) into ρ²·N training images of full size, `pack` goes
the other way. Sub-images of one stored image stay next to each other, row by row, so the labels
of the decoded images are `labels.repeat_interleave(ρ²)`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def split(images: Tensor, factor: int) -> Tensor:
    """Cut (N, C, H, W) into its sub-images, (N·ρ², C, H/ρ, W/ρ). Exact inverse of `join`."""
    N, C, H, W = images.shape
    h, w = H // factor, W // factor
    parts = images.reshape(N, C, factor, h, factor, w).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(N * factor**2, C, h, w)


def join(parts: Tensor, factor: int) -> Tensor:
    """Lay ρ² consecutive sub-images (N·ρ², C, h, w) out as one image, (N, C, ρ·h, ρ·w)."""
    M, C, h, w = parts.shape
    N = M // factor**2
    images = parts.reshape(N, factor, factor, C, h, w).permute(0, 3, 1, 4, 2, 5)
    return images.reshape(N, C, factor * h, factor * w)


def decode(images: Tensor, factor: int) -> Tensor:
    """Return the training images (N·ρ², C, H, W) held by stored images (N, C, H, W).

    Bilinear interpolation is a convex combination, so images in [0, 1] stay in [0, 1].
    """
    if factor == 1:
        return images
    parts = split(images, factor)
    return F.interpolate(parts, size=images.shape[-2:], mode="bilinear", align_corners=False)


def pack(images: Tensor, factor: int) -> Tensor:
    """Shrink images (N·ρ², C, H, W) by ρ and store ρ² in one: (N, C, H, W)."""
    if factor == 1:
        return images
    _, _, H, W = images.shape
    small = F.interpolate(
        images,
        size=(H // factor, W // factor),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    # The antialiasing weights sum to one only up to rounding.
    return join(small.clamp(0, 1), factor)


def packed_initialisation(
    images: Tensor,
    labels: Tensor,
    *,
    ipc: int,
    num_classes: int,
    factor: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Pick real images of each class and pack them.

    Returns images (C·ipc, ch, H, W) in [0, 1] and their labels (C·ipc,), class by class.

    Args:
        images: (N, ch, H, W) uint8.
        labels: (N,) in [0, C).
        ipc: stored images for each class.
        num_classes: C.
        factor: ρ; each stored image takes ρ² real ones. 1 stores real images as they are.
        generator: CPU generator that picks the images. A class with fewer than ipc·ρ² images
            gives each of them before any is used again.
    """
    picks = []
    wanted = ipc * factor**2
    for c in range(num_classes):
        members = torch.nonzero(labels.cpu() == c).flatten()
        if len(members) == 0:
            raise ValueError(f"class {c} has no training image to start from")
        rounds = -(-wanted // len(members))
        order = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        picks.append(torch.cat(order)[:wanted])
    chosen = images[torch.cat(picks).to(images.device)].float() / 255
    stored_labels = torch.arange(num_classes, device=images.device).repeat_interleave(ipc)
    return pack(chosen, factor), stored_labels
