"""The zoo: networks kept twice, at initialisation and after training, and blends of the two."""

import io
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import augmentation, cache, checkpoint, fused, networks, processes, training, workers
from .data import Data
from .networks import Weights
from .randomness import generator


@dataclass
class Zoo:
    """Z members on the device; nothing is read from disk to use one."""

    initial: Weights  # (Z, ...)
    trained: Weights  # (Z, ...)
    accuracies: list[float]  # of the trained members on the validation part, percent
    reused: int = 0  # members that were trained by an earlier run

    def __len__(self) -> int:
        return len(self.accuracies)

    def blend(self, member: int, beta: float) -> Weights:
        """Weights β · initial + (1-β) · trained of one member."""
        return {
            name: torch.lerp(trained[member], self.initial[name][member], beta)
            for name, trained in self.trained.items()
        }


#: Raise it whenever a member comes out differently, be it by a rounding, for the same arguments.
RECIPE = 1


def train_zoo(
    network: nn.Module, data: Data, *, size: int, epochs: int, seed: int, use_cache: bool = True
) -> Zoo:
    """Train `size` networks on the training part, side by side where there is room for it.

    Trained members are kept one by one, so that a larger zoo takes over those of a smaller one,
    and an interrupted training goes on. On a CPU they are the same bits as without the cache.
    """
    digits = data.name == "digits"
    strategy = augmentation.TRAINING
    strategy = augmentation.for_digits(strategy) if digits else strategy
    initial = [
        networks.initial_weights(network, generator(seed, "zoo weights", k)) for k in range(size)
    ]
    trained: dict[int, Weights] = {}
    accuracies: dict[int, float] = {}
    names: list[str] = []
    if use_cache:
        made_of = _ingredients(network, data, strategy, epochs, seed)
        names = [f"zoo/{cache.key(*made_of, k)}" for k in range(size)]
        for k, name in enumerate(names):
            content = cache.read(name)
            if content is not None:
                member = torch.load(
                    io.BytesIO(content), map_location=data.device, weights_only=True
                )
                trained[k], accuracies[k] = member["trained"], member["accuracy"]
    # Process 0 says which: another run may write to the cache between two looks at it.
    missing = processes.first(lambda: [k for k in range(size) if k not in trained])
    trained = {k: w for k, w in trained.items() if k not in missing}
    own = [missing[k] for k in processes.share(range(len(missing)))]
    at_once = training.side_by_side(data)
    with tqdm(
        total=(size - len(missing) + len(own)) * epochs,
        initial=(size - len(missing)) * epochs,
        desc="zoo",
        unit="epoch",
        disable=processes.rank() > 0,
    ) as bar:
        lock = threading.Lock()  # of the bar

        def train_group(group: list[int]) -> None:
            def after_epoch(_: int, __: Weights, loss: Tensor) -> None:
                with lock:
                    bar.set_postfix(loss=f"{loss.item():.3f}")
                    bar.update(len(group))

            unfinished = None
            if use_cache and processes.size() == 1:
                key = cache.key(*(names[k] for k in group))
                file = cache.folder() / "zoo" / f"unfinished-{key}.pt"
                unfinished = training.Unfinished(file, [])
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
                unfinished=unfinished,
            )
            for r, k in enumerate(group):
                one = trained[k] = {n: w[r].clone() for n, w in weights.items()}
                accuracies[k] = training.accuracy(
                    network, one, data, data.validation_images, data.validation_labels
                )
                if use_cache:
                    buffer = io.BytesIO()
                    torch.save({"trained": one, "accuracy": accuracies[k]}, buffer)
                    cache.write(names[k], buffer.getvalue())

        groups = [own[first : first + at_once] for first in range(0, len(own), at_once)]
        workers.each(train_group, groups, one_core=training.one_core_each(data))
    if processes.size() > 1:
        shared = own if processes.rank() else [*trained]
        for k, weights, accuracy in processes.gather(
            [(k, {n: w.cpu() for n, w in trained[k].items()}, accuracies[k]) for k in shared]
        ):
            trained[k] = {n: w.to(data.device) for n, w in weights.items()}
            accuracies[k] = accuracy
    members = range(size)
    return Zoo(
        networks.stack(initial),
        networks.stack([trained[k] for k in members]),
        [accuracies[k] for k in members],
        size - len(missing),
    )


def _ingredients(
    network: nn.Module, data: Data, strategy: augmentation.Strategy, epochs: int, seed: int
) -> tuple[object, ...]:
    """All that the members depend on to the last bit, but their number."""
    device = data.device
    if device.type == "cpu":
        # Sums are divided among the threads, and into vectors of the processor's length.
        threads = 1 if training.one_core_each(data) else torch.get_num_threads()
        machine = (threads, torch.backends.cpu.get_cpu_capability())
    else:
        machine = (torch.cuda.get_device_name(device), torch.backends.cudnn.version())
    shapes = [(name, tuple(p.shape)) for name, p in network.named_parameters()]
    architecture = (type(network).__name__, shapes, *["amp"] * getattr(network, "amp", False))
    architecture += ("fused",) * (fused.why_not(network, device, data.size) is None)
    code = (RECIPE, torch.__version__, device.type, machine)
    return (*code, architecture, data.fingerprint(), asdict(strategy), epochs, seed)


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
    if not {"initial", "trained", "accuracies", "description"} <= state.keys():
        raise ValueError(f"{path} holds no zoo; it has to be the zoo.pt of a run")
    wrong = [k for k, v in description.items() if state["description"].get(k) != v]
    if wrong:
        found = ", ".join(f"{k} {state['description'].get(k)!r}" for k in wrong)
        wanted = ", ".join(f"{k} {description[k]!r}" for k in wrong)
        raise ValueError(f"{path} holds a zoo for {found}; this run needs {wanted}")
    return Zoo(state["initial"], state["trained"], state["accuracies"])
