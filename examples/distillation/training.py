"""Training classifiers, one or several side by side, for the zoo and for the evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import augmentation, networks
from .augmentation import Strategy
from .data import Data
from .networks import Weights


def halved_at_fifths(progress: float) -> float:
    """Return the rate factor 1, 1/2, ... 1/16, each for a fifth of the time."""
    return float(0.5 ** int(5 * progress))


def one_cycle(progress: float) -> float:
    """Rise for a fifth of the time, then fall to zero, both linearly: good for few epochs."""
    return min(progress / 0.2, (1 - progress) / 0.8)


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
    after_epoch: Callable[[int, Weights, float], None] | None = None,
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
        after_epoch: called with the epoch (from 1), the weights and the mean loss of the epoch.

    Returns:
        (R, ...) trained weights.
    """
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=5e-4)
    R, N = len(generators), len(images)
    steps = -(-N // batch)
    for epoch in range(epochs):
        orders = torch.stack([torch.randperm(N, generator=g) for g in generators])
        orders = orders.to(images.device)
        total = torch.zeros((), device=images.device)
        for step, index in enumerate(orders.split(batch, dim=1)):  # (R, B)
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule((epoch + step / steps) / epochs)
            B = index.shape[1]
            x = data.normalise(images[index.flatten()])
            if strategy is not None:
                drawn = [augmentation.draw(B, strategy, data.size, g) for g in generators]
                params = augmentation.to(augmentation.cat(drawn), images.device)
                x = augmentation.augment(x, params)
            y = labels[index]  # (R, B)
            x = x.unflatten(0, (R, B))
            mixes = [_mix(x[r], cutmix, g) for r, g in enumerate(generators)]
            logits = networks.run_stacked(network, weights, torch.stack([m[0] for m in mixes]))
            loss = torch.zeros((), device=images.device)
            for r, (_, other, own) in enumerate(mixes):
                loss = loss + own * F.cross_entropy(logits[r], y[r])
                if own < 1:
                    loss = loss + (1 - own) * F.cross_entropy(logits[r], y[r][other])
            optimizer.zero_grad()
            loss.backward()  # the networks share nothing, so the sum trains each on its own
            optimizer.step()
            total += loss.detach() / (R * steps)
        if after_epoch is not None:
            detached = {name: w.detach() for name, w in weights.items()}
            after_epoch(epoch + 1, detached, total.item())
    return {name: w.detach() for name, w in weights.items()}


def _mix(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Mix a batch with a shuffled copy of itself, with some probability.

    Returns the batch, the shuffled order and each image's own share.
    """
    if not probability or torch.rand((), generator=generator).item() >= probability:
        return x, torch.empty(0), 1.0
    other = torch.randperm(len(x), generator=generator).to(x.device)
    mixed, own = augmentation.cutmix(x, x[other], generator)
    return mixed, other, own


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
