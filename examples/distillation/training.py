"""Training classifiers, one or several side by side, for the zoo and for the evaluation."""

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import augmentation, checkpoint, networks, workers
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


#: Seconds from one writing of an unfinished training to the next.
KEEP_EVERY = 20.0


@dataclass
class Unfinished:
    """A training in a file: written now and then, taken up again, deleted at its end."""

    file: Path
    record: list[Any]  # what `after_epoch` has collected: numbers, and lists of them

    def save(self, epoch: int, **state: Any) -> None:
        # It saves time, no more: where it cannot be written the training goes on.
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save(self.file, {"epoch": epoch, "record": self.record, **state})

    def load(self) -> dict[str, Any] | None:
        try:
            return checkpoint.load(self.file)
        except OSError:  # not there, or no more: a run that shares the cache has finished it
            return None
        except ValueError as error:
            tqdm.write(f"{str(error).split(';')[0]}; that training begins anew")
            return None


def side_by_side(data: Data) -> int:
    """How many networks to train together: one on a CPU, on a GPU as many as keep it busy."""
    if data.device.type == "cpu":
        return 1
    return max(1, 10 * 32**2 // data.size**2)  # ten batches of CIFAR, or as many pixels


def one_core_each(data: Data) -> bool:
    """Whether each network is trained on a core of its own, beside others; see `workers.py`.

    On a CPU. Small images stay as they were, whose whole run takes minutes.
    """
    return data.device.type == "cpu" and data.size >= 32


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
    unfinished: Unfinished | None = None,
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
        unfinished: where a training that is cut off is kept; one with the same arguments goes on
            from there, to the same bits on a CPU.

    Returns:
        (R, ...) trained weights.
    """
    network = copy.deepcopy(network)  # one that is called with other weights serves one thread
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=5e-4)
    R, N = len(generators), len(images)
    steps = -(-N // batch)
    state = unfinished.load() if unfinished is not None else None
    if unfinished is not None and state is not None:
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(state["weights"][name])
        optimizer.load_state_dict(state["optimizer"])
        for g, numbers in zip(generators, state["generators"], strict=True):
            g.set_state(numbers)
        unfinished.record[:] = state["record"]
    written = time.perf_counter()
    for epoch in range(state["epoch"] if state else 0, epochs):
        orders = torch.stack([torch.randperm(N, generator=g) for g in generators])
        orders = sent(orders, images.device)
        total = torch.zeros((), device=images.device)
        for step, index in enumerate(orders.split(batch, dim=1)):  # (R, B)
            workers.check()
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
        if unfinished is not None and time.perf_counter() - written >= KEEP_EVERY:
            unfinished.save(
                epoch + 1,
                weights={name: w.detach() for name, w in weights.items()},
                optimizer=optimizer.state_dict(),
                generators=[g.get_state() for g in generators],
            )
            written = time.perf_counter()
    if unfinished is not None:
        with contextlib.suppress(OSError):  # there may be no folder, and then nothing was written
            unfinished.file.unlink(missing_ok=True)
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
    network = copy.deepcopy(network)
    right = 0
    piece = 1024 if images.device.type == "cpu" else 8192
    for x, y in zip(images.split(piece), labels.split(piece), strict=True):
        _, logits = networks.run_in_chunks(network, weights, data.normalise(x))
        right += int((logits.argmax(1) == y).sum())
    return 100 * right / len(labels)
