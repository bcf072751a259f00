"""Differentiable augmentation of whole batches.

A `Draw` holds P sets of parameters, `augment` applies them to N images. Matching gives the real
and the synthetic images of a class the same set (siamese: a difference between the two is then a
difference of the images, never of the augmentation); training gives every image its own.

Images are normalised (mean 0), so the zeros that crop and cutout leave are the mean colour.
All geometry is one affine map, resampled once.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .randomness import sent


@dataclass(frozen=True)
class Strategy:
    """What to vary and how far; 0 (or False) leaves that part out."""

    brightness: float = 1.0  # added offset, uniform in ±half of this, in standard deviations
    saturation: float = 2.0  # distance from grey multiplied by uniform [0, this]
    contrast: float = 0.5  # distance from the mean multiplied by uniform 1 ± this
    crop: float = 0.125  # shift in each direction, up to this share of the side, whole pixels
    cutout: float = 0.5  # side of the blanked square, share of the image's side
    flip: bool = True  # left-right with probability one half
    scale: float = 1.2  # zoom of each axis, log-uniform between 1/this and this
    rotate: float = 15.0  # degrees to either side
    one_of: bool = True  # apply one randomly chosen kind instead of all of them


#: How networks are trained: one kind for each image, since all kinds at once leave little to
#: recognise where there are only a few hundred images.
TRAINING = Strategy()
#: Colour, crop and cutout only: how real and synthetic batches are compared.
MATCHING = Strategy(flip=False, scale=0.0, rotate=0.0)


def for_digits(strategy: Strategy) -> Strategy:
    """Milder, and without mirror images: a mirrored 2 is no digit."""
    cutout = strategy.cutout and 0.25
    return replace(strategy, flip=False, saturation=0.0, cutout=cutout)


@dataclass(frozen=True)
class Draw:
    """P parameter sets. `theta` maps output to input coordinates, as `affine_grid` wants it."""

    brightness: Tensor  # (P,)
    saturation: Tensor  # (P,)
    contrast: Tensor  # (P,)
    theta: Tensor  # (P, 2, 3)
    cut: Tensor  # (P, 3): centre y, centre x, side, all in shares of the image's side

    def __getitem__(self, index: Tensor) -> "Draw":
        return Draw(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def draw(count: int, strategy: Strategy, size: int, *generators: torch.Generator) -> Draw:
    """Draw `count` parameter sets from each generator for images of `size` pixels, on the CPU.

    Sets of one generator stay together, and do not depend on the other generators.
    """
    s = strategy
    # One draw for every kind, used or not: the stream stays the same when a kind is switched off.
    # All numbers at once, since a step has time for few small operations.
    numbers = [torch.rand(12 if s.one_of else 11, count, generator=g) for g in generators]
    rows = iter(torch.cat(numbers, dim=1))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * next(rows)

    brightness = uniform(-0.5, 0.5) * s.brightness
    saturation = uniform(0, s.saturation) if s.saturation else torch.ones_like(next(rows))
    contrast = 1 + uniform(-1, 1) * s.contrast
    # Whole pixels: a shift then copies pixels, and blurs none.
    reach = round(s.crop * size) + 0.499
    shift_y = torch.round(uniform(-1, 1) * reach) * (2 / size)
    shift_x = torch.round(uniform(-1, 1) * reach) * (2 / size)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if s.flip else 1 + 0 * uniform(0, 1)
    zoom_y = (s.scale or 1.0) ** uniform(-1, 1)
    zoom_x = (s.scale or 1.0) ** uniform(-1, 1)
    angle = torch.deg2rad(uniform(-1, 1) * s.rotate)
    cut = torch.stack([uniform(0, 1), uniform(0, 1), torch.full_like(angle, s.cutout)], dim=1)

    if s.one_of:
        kinds = {
            "colour": bool(s.brightness or s.saturation or s.contrast),
            "crop": bool(s.crop),
            "cutout": bool(s.cutout),
            "flip": s.flip,
            "scale": bool(s.scale),
            "rotate": bool(s.rotate),
        }
        on = [k for k, used in kinds.items() if used]
        chosen = (uniform(0, 1) * len(on)).long().clamp(max=len(on) - 1)
        keep = {k: (chosen == on.index(k)).float() if k in on else 0.0 for k in kinds}
        brightness = brightness * keep["colour"]
        saturation = 1 + (saturation - 1) * keep["colour"]
        contrast = 1 + (contrast - 1) * keep["colour"]
        shift_y, shift_x = shift_y * keep["crop"], shift_x * keep["crop"]
        mirror = 1 + (mirror - 1) * keep["flip"]
        zoom_y, zoom_x = 1 + (zoom_y - 1) * keep["scale"], 1 + (zoom_x - 1) * keep["scale"]
        angle = angle * keep["rotate"]
        cut = cut * torch.stack([torch.ones_like(angle)] * 2 + [angle * 0 + keep["cutout"]], dim=1)

    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * zoom_x * mirror, -sin * zoom_y, shift_x], dim=1),
            torch.stack([sin * zoom_x * mirror, cos * zoom_y, shift_y], dim=1),
        ],
        dim=1,
    )
    return Draw(brightness, saturation, contrast, theta, cut)


def to(d: Draw, device: torch.device) -> Draw:
    """Move a draw, in one piece."""
    if d.theta.device == device:
        return d
    values = [getattr(d, f.name) for f in fields(Draw)]
    P = len(d.theta)
    together = sent(torch.cat([v.reshape(P, -1) for v in values], dim=1), device)
    parts = together.split([v[0].numel() for v in values], dim=1)
    return Draw(*(part.reshape(v.shape) for part, v in zip(parts, values, strict=True)))


def augment(images: Tensor, params: Draw, index: Tensor | None = None) -> Tensor:
    """Apply set `index[n]` of `params` to image n.

    Args:
        images: (N, C, H, W), normalised.
        params: P sets, on the images' device.
        index: (N,) in [0, P), for example the labels. Default: P = N, one set for each image.

    Returns:
        (N, C, H, W), differentiable in `images`.
    """
    if index is not None:
        params = params[index]
    _, _, H, W = images.shape

    # Colour. (N, 1, 1, 1) factors.
    brightness, saturation, contrast = (
        v[:, None, None, None] for v in (params.brightness, params.saturation, params.contrast)
    )
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast + brightness

    # Geometry. Outside the image is zero, the mean colour.
    grid = F.affine_grid(params.theta.to(images.dtype), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)

    # Cutout. The square's centre is anywhere, so part of it may lie outside.
    cy, cx, side = params.cut.unbind(1)
    y = (torch.arange(H, device=images.device) + 0.5) / H
    x = (torch.arange(W, device=images.device) + 0.5) / W
    in_y = (y - cy[:, None]).abs() < side[:, None] / 2  # (N, H)
    in_x = (x - cx[:, None]).abs() < side[:, None] / 2  # (N, W)
    inside = in_y[:, None, :, None] & in_x[:, None, None, :]
    return images.masked_fill(inside, 0.0)


def cutmix_box(height: int, width: int, generator: torch.Generator) -> tuple[slice, slice, float]:
    """Choose one random rectangle of an image for another one to be pasted into.

    Returns:
        Its rows, its columns, and the share of the image outside it.
    """
    share, y, x = torch.rand(3, generator=generator).tolist()
    side = (1 - share) ** 0.5
    top, left = int(y * height), int(x * width)
    h, w = int(side * height / 2), int(side * width / 2)
    rows = slice(max(top - h, 0), min(top + h, height))
    columns = slice(max(left - w, 0), min(left + w, width))
    replaced = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - replaced / (height * width)
