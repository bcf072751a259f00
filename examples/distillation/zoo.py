"""The zoo: networks kept twice, at initialisation and after training, and blends of the two."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from . import augmentation, checkpoint, networks, training
from .data import Data
from .networks import Weights
from .randomness import generator


@dataclass
class Zoo:
    """Z members on the device; nothing is read from disk to use one."""

    initial: Weights  # (Z, ...)
    trained: Weights  # (Z, ...)
    accuracies: list[float]  # of the trained members on the validation part, percent

    def __len__(self) -> int:
        return len(self.accuracies)

    def blend(self, member: int, beta: float) -> Weights:
        """Weights β · initial + (1-β) · trained of one member."""
        return {
            name: torch.lerp(trained[member], self.initial[name][member], beta)
            for name, trained in self.trained.items()
        }


def train_zoo(network: nn.Module, data: Data, *, size: int, epochs: int, seed: int) -> Zoo:
    """Train `size` networks on the training part; side by side where the device is parallel."""
    digits = data.name == "digits"
    strategy = augmentation.TRAINING
    strategy = augmentation.for_digits(strategy) if digits else strategy
    initial = [
        networks.initial_weights(network, generator(seed, "zoo weights", k)) for k in range(size)
    ]
    at_once = 1 if data.device.type == "cpu" else min(size, 5)
    trained: list[Weights] = []
    with tqdm(total=size * epochs, desc="zoo", unit="epoch") as bar:
        for first in range(0, size, at_once):
            group = range(first, min(first + at_once, size))

            def after_epoch(_: int, __: Weights, loss: float, together: int = len(group)) -> None:
                bar.set_postfix(loss=f"{loss:.3f}")
                bar.update(together)

            weights = training.train(
                network,
                networks.stack([initial[k] for k in group]),
                data,
                data.train_images,
                data.train_labels,
                [generator(seed, "zoo training", k) for k in group],
                epochs=epochs,
                rate=2e-3,
                schedule=training.one_cycle,
                strategy=strategy,
                after_epoch=after_epoch,
            )
            trained += [{n: w[r] for n, w in weights.items()} for r in range(len(group))]
    accuracies = [
        training.accuracy(network, w, data, data.validation_images, data.validation_labels)
        for w in trained
    ]
    return Zoo(networks.stack(initial), networks.stack(trained), accuracies)


def save_zoo(path: Path, zoo: Zoo, description: dict[str, Any]) -> None:
    """Write the zoo with what it was made from."""
    state = {
        "initial": zoo.initial,
        "trained": zoo.trained,
        "accuracies": zoo.accuracies,
        "description": description,
    }
    checkpoint.save(path, state)


def load_zoo(path: Path, description: dict[str, Any], device: torch.device) -> Zoo:
    """Read a zoo; refuse one made for other data or another network."""
    state = checkpoint.load(path, device)
    wrong = [k for k, v in description.items() if state["description"].get(k) != v]
    if wrong:
        found = ", ".join(f"{k} {state['description'].get(k)!r}" for k in wrong)
        wanted = ", ".join(f"{k} {description[k]!r}" for k in wrong)
        raise ValueError(f"{path} holds a zoo for {found}; this run needs {wanted}")
    return Zoo(state["initial"], state["trained"], state["accuracies"])
