"""Which classes are handled together: all, or as many as a memory limit leaves room for.

The loss is a sum over classes, so its gradient is the sum of the gradients of the chunks: the same
as all at once, up to rounding.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import augmentation, formation, networks
from .data import Data
from .options import Config
from .randomness import generator
from .zoo import Zoo

#: Bytes of a CPU process before it has done anything: Python, PyTorch and the other libraries, as
#: resident memory counts them. A GPU's figure is what PyTorch allocates there: nothing.
PROCESS_BYTES = 800e6

#: Over what is kept for the backward pass: what the backward pass itself forms, and the padding of
#: the allocator. Measured: see the test of the estimate.
OVERHEAD = 1.3


@dataclass(frozen=True)
class Chunk:
    """Classes first, ..., last - 1 and their stored images, class by class."""

    first: int
    last: int
    ipc: int

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def classes(self) -> slice:
        return slice(self.first, self.last)

    @property
    def rows(self) -> slice:
        """Of the stored images."""
        return slice(self.first * self.ipc, self.last * self.ipc)

    def labels(self, per_class: int, device: torch.device) -> Tensor:
        """Labels of `per_class` images of each class, counted from the first class here."""
        return torch.arange(len(self), device=device).repeat_interleave(per_class)


def chunks(classes: range, at_once: int, ipc: int) -> list[Chunk]:
    """Cut consecutive classes into chunks of at most `at_once`, as equal as they can be."""
    count = math.ceil(len(classes) / at_once)
    cuts = [classes.start + len(classes) * k // count for k in range(count + 1)]
    return [Chunk(a, b, ipc) for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Estimate:
    """Bytes a run needs at its peak: `fixed`, and the larger of two that never meet."""

    fixed: float
    each: float  # for every class handled together
    between: float  # when no class is handled: a step, a checkpoint, features without gradient

    def at_once(self, num_classes: int, limit_gb: float | None) -> int:
        """Classes that fit. Raises ValueError if one does not."""
        if limit_gb is None:
            return num_classes
        room = limit_gb * 1e9 - self.fixed
        fit = math.floor(min(room / self.each, num_classes))
        if fit < 1 or room < self.between:
            needed = self.peak(1) / 1e9
            raise ValueError(
                f"--memory-limit-gb must be at least {math.ceil(10 * needed) / 10} for one class "
                f"at a time; got {limit_gb:g}. Smaller: --batch-real, --width, --ipc"
            )
        return fit

    def peak(self, at_once: int) -> float:
        """Bytes at the peak with that many classes handled together."""
        return self.fixed + max(at_once * self.each, self.between)


def estimate(config: Config, data: Data, network: Any, zoo: Zoo) -> Estimate:
    """Estimate the memory of the matching, by a formula around one trial.

    The trial runs one decoded image forwards and counts what autograd keeps for the way back. The
    rest is arithmetic on sizes. So the answer is the same on every machine that runs the network by
    the same functions.
    """
    C, rho2 = data.num_classes, config.factor**2
    image = 4 * data.channels * data.size**2
    features = 4 * sum(network.features[-config.layers :])
    stored = C * config.ipc * image
    synthetic = config.ipc * rho2  # of each class, once decoded
    real = min(config.batch_real, int(torch.bincount(data.train_labels).max()))
    kept, largest = _trial(config, data, network, zoo)

    on_cpu = data.device.type == "cpu"
    moments = 4 if config.calibration else 2  # of the optimizers
    model = sum(w.nbytes for w in zoo.trained.values())
    fixed = (
        (PROCESS_BYTES if on_cpu else 0)
        + _bytes(v for v in vars(data).values() if isinstance(v, Tensor))
        + 2 * model  # initial and trained
        + 4 * model / len(zoo)  # blends
        + (4 + moments) * stored  # two sets to begin with, images, gradient
        + C * min(64, config.batch_real) * features  # the probe's
        + min(C, 10) * real * features
        + 6 * config.num_frequencies * features  # ψ: noise, scales, products, slopes
    )
    between = max(
        (1 + moments) * stored if on_cpu else 0,  # a checkpoint is formed in memory
        3 * stored,  # what a step of the optimizer forms
        3 * networks.AT_ONCE[data.device.type] * largest,
    )
    # Real images: as they are, normalised, augmented in several steps. Later their features, also
    # those of length 1, beside the synthetic images. Phases are formed on both sides.
    phases = 2 * 4 * config.num_frequencies * config.layers
    alone = real * (7 * image + features)
    together = real * (image + 2 * features + phases) + synthetic * (
        OVERHEAD * kept + 4 * features + phases
    )
    return Estimate(fixed, max(alone, together), between)


def _trial(config: Config, data: Data, network: Any, zoo: Zoo) -> tuple[float, float]:
    """Bytes that autograd keeps for one decoded image, and those of its largest map."""
    seen: dict[int, int] = {}
    weights = zoo.blend(0, 0.5)
    shared = {w.untyped_storage().data_ptr() for w in weights.values()}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in shared:
            seen[storage.data_ptr()] = storage.nbytes()
        held.append(x)  # or its address is given to the next tensor
        return x

    held: list[Tensor] = []
    identity: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731 - a `def` says no more
    shape = (1, data.channels, data.size, data.size)
    stored = torch.full(shape, 0.5, device=data.device, requires_grad=True)
    drawn = augmentation.draw(1, augmentation.MATCHING, data.size, generator(0, "trial"))
    with torch.autograd.graph.saved_tensors_hooks(count, identity):
        images = data.normalise(formation.decode(stored, config.factor))
        N = len(images)
        index = torch.zeros(N, dtype=torch.int64, device=data.device)
        images = augmentation.augment(images, augmentation.to(drawn, data.device), index)
        networks.run(network, weights, images, config.layers)
    return sum(seen.values()) / N, max(seen.values()) / N


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
