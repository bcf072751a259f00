"""Training classifiers, one or several side by side, for the zoo and for the evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import augmentation, networks
from .augmentation import Strategy
from .data import Data
from .networks import Weights
from .randomness import sent


def halved_at_fifths(progress: float) -> float:
    """Return the rate factor 1, 1/2, ... 1/16, each for a fifth of the time."""
    return float(0.5 ** int(5 * progress))


def one_cycle(progress: float) -> float:
    """Rise for a fifth of the time, then fall to zero, both linearly: good for few epochs."""
    return min(progress / 0.2, (1 - progress) / 0.8)


def side_by_side(data: Data) -> int:
    """How many networks to train together: one on a CPU, on a GPU as many as keep it busy."""
    if data.device.type == "cpu":
        return 1
    return max(1, 10 * 32**2 // data.size**2)  # ten batches of CIFAR, or as many pixels


def train(
    network: nn.Module,
    weights: Weights,
    data: Data,
    images: Tensor,
    labels: Tensor,
    generators: list[torch.Generator],
    *,
    epochs: int,
    rate: float,
    schedule: Callable[[float], float],
    strategy: Strategy | None,
    batch: int = 128,
    cutmix: float = 0.0,
    after_epoch: Callable[[int, Weights, Tensor], None] | None = None,
) -> Weights:
    """Train R networks on the same images, each in its own order and with its own augmentation.

    Args:
        network: the architecture.
        weights: (R, ...) starting points; not changed.
        data: gives the normalisation.
        images: (N, channels, H, W) uint8, or float in [0, 1].
        labels: (N,), or (N, C) probabilities.
        generators: R CPU generators, one for each network, so that its result does not depend on
            which others are trained beside it.
        epochs: passes over the images.
        rate: AdamW's learning rate, multiplied by `schedule(progress)`.
        schedule: of the progress in [0, 1).
        strategy: augmentation, one draw for each image; None for none.
        batch: images in a step.
        cutmix: probability that a step mixes two images.
        after_epoch: called with the epoch (from 1), the weights and the mean loss of the epoch (a
            tensor on the device: reading it makes a GPU wait).

    Returns:
        (R, ...) trained weights.
    """
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=5e-4)
    R, N = len(generators), len(images)
    steps = -(-N // batch)
    for epoch in range(epochs):
        orders = torch.stack([torch.randperm(N, generator=g) for g in generators])
        orders = sent(orders, images.device)
        total = torch.zeros((), device=images.device)
        for step, index in enumerate(orders.split(batch, dim=1)):  # (R, B)
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule((epoch + step / steps) / epochs)
            B = index.shape[1]
            x = data.normalise(images[index.flatten()])
            if strategy is not None:
                params = augmentation.draw(B, strategy, data.size, *generators)
                x = augmentation.augment(x, augmentation.to(params, images.device))
            y = labels[index]  # (R, B)
            x = x.unflatten(0, (R, B))
            others, shares = _cutmix(x, cutmix, generators)
            logits = networks.run_stacked(network, weights, x)
            loss = torch.zeros((), device=images.device)
            for r, own in enumerate(shares):
                loss = loss + own * F.cross_entropy(logits[r], y[r])
                if own < 1:
                    loss = loss + (1 - own) * F.cross_entropy(logits[r], y[r][others[r]])
            optimizer.zero_grad()
            loss.backward()  # the networks share nothing, so the sum trains each on its own
            optimizer.step()
            total += loss.detach() / (R * steps)
        if after_epoch is not None:
            detached = {name: w.detach() for name, w in weights.items()}
            after_epoch(epoch + 1, detached, total)
    return {name: w.detach() for name, w in weights.items()}


def _cutmix(
    x: Tensor, probability: float, generators: list[torch.Generator]
) -> tuple[Tensor, list[float]]:
    """Mix the batches x (R, B, ...), each with itself in another order, in place.

    Returns the orders (R, B) and the share that every image of a batch keeps of itself: 1 for a
    batch that is left alone.
    """
    R, B, _, H, W = x.shape
    orders, shares = torch.empty(R, B, dtype=torch.int64), [1.0] * R
    boxes = {}
    for r, g in enumerate(generators):
        if probability and torch.rand((), generator=g).item() < probability:
            orders[r] = torch.randperm(B, generator=g)
            *boxes[r], shares[r] = augmentation.cutmix_box(H, W, g)
    if boxes:
        orders = sent(orders, x.device)
    for r, (rows, columns) in boxes.items():
        box = x[r, :, :, rows, columns]
        box.copy_(box[orders[r]])
    return orders, shares


def accuracy(
    network: nn.Module, weights: Weights, data: Data, images: Tensor, labels: Tensor
) -> float:
    """Accuracy in percent of one network on uint8 images."""
    right = 0
    piece = 1024 if images.device.type == "cpu" else 8192
    for x, y in zip(images.split(piece), labels.split(piece), strict=True):
        _, logits = networks.run_in_chunks(network, weights, data.normalise(x))
        right += int((logits.argmax(1) == y).sum())
    return 100 * right / len(labels)
