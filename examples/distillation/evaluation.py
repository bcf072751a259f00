"""How good a small set is: fresh networks trained on it alone, judged on the test images."""

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import augmentation, checkpoint, formation, networks, processes, training, workers
from .data import Data
from .networks import Weights
from .randomness import generator


@dataclass
class Run:
    """One evaluation network. All accuracies in percent."""

    test: float  # after the last epoch: the figure to quote
    test_best: float  # best of `curve`: selected on the test set, for comparison only
    validation: float  # after the last epoch, for every choice
    curve: list[list[float]]  # [epoch, test, validation], a few epochs


def evaluate(
    network: nn.Module,
    data: Data,
    images: Tensor,
    labels: Tensor,
    *,
    factor: int,
    epochs: int,
    runs: int,
    seed: int,
    name: str,
    augment: bool = True,
    soft_labels: Tensor | None = None,
    file: Path | None = None,
) -> list[Run]:
    """Train `runs` fresh networks on the decoded images.

    Args:
        network: the architecture.
        data: test and validation images, normalisation.
        images: (N, channels, H, W) stored images in [0, 1].
        labels: (N,).
        factor: ρ of the stored images.
        epochs: passes over the decoded images.
        runs: number of networks.
        seed: of initialisation, order and augmentation. The same seed gives every method the
            same networks, so that differences between methods are not those between networks.
        name: shown beside the progress bar.
        soft_labels: (N·ρ², C) probabilities to train with in place of `labels`.
        augment: train with augmentation and CutMix.
        file: finished runs are kept here and not repeated.
    """
    decoded = formation.decode(images, factor)
    decoded_labels = labels.repeat_interleave(factor**2) if soft_labels is None else soft_labels
    strategy = None
    if augment:
        digits = data.name == "digits"
        strategy = augmentation.TRAINING
        strategy = augmentation.for_digits(strategy) if digits else strategy
    # Looking five times is enough to see where the accuracy goes, and costs little.
    looks = {max(1, round(epochs * k / 5)) for k in range(1, 6)}
    done: dict[int, Run] = {}
    if file is not None and file.exists():
        kept = checkpoint.load(file)["runs"]
        done = {r: Run(**run) for r, run in enumerate(kept) if run is not None}
    one_core = training.one_core_each(data)
    together = training.side_by_side(data) * processes.size()
    lock = threading.Lock()  # of the bar and the file
    with tqdm(
        total=runs * epochs,
        initial=len(done) * epochs,
        desc=name,
        unit="epoch",
        disable=processes.rank() > 0,
    ) as bar:

        def train_block(block: list[int]) -> None:
            group = [block[k] for k in processes.share(range(len(block)))]
            curves: list[list[list[float]]] = [[] for _ in group]

            def after_epoch(epoch: int, weights: Weights, loss: Tensor) -> None:
                if epoch in looks:
                    for r, curve in enumerate(curves):
                        one = {n: w[r] for n, w in weights.items()}
                        test = (data.test_images, data.test_labels)
                        held = (data.validation_images, data.validation_labels)
                        scores = [training.accuracy(network, one, data, *p) for p in (test, held)]
                        curve.append([float(epoch), *scores])
                with lock:
                    if epoch in looks:
                        bar.set_postfix(
                            loss=f"{loss.item():.3f}", validation=f"{curves[0][-1][2]:.1f}%"
                        )
                    bar.update(len(curves))

            starts = [
                networks.initial_weights(network, generator(seed, "evaluation weights", r))
                for r in group
            ]
            unfinished = None
            if file is not None and processes.size() == 1:
                part = f"unfinished-{group[0]}-{file.name}"
                unfinished = training.Unfinished(file.with_name(part), curves)
            if group:  # with more processes than runs some have nothing to do
                training.train(
                    network,
                    networks.stack(starts),
                    data,
                    decoded,
                    decoded_labels,
                    [generator(seed, "evaluation training", r) for r in group],
                    epochs=epochs,
                    rate=1e-3,
                    schedule=training.halved_at_fifths,
                    strategy=strategy,
                    cutmix=0.5 if augment else 0.0,
                    after_epoch=after_epoch,
                    unfinished=unfinished,
                )
            gathered = processes.gather(curves)
            with lock:
                for r, curve in zip(block, gathered, strict=True):
                    _, test, validation = curve[-1]
                    done[r] = Run(test, max(point[1] for point in curve), validation, curve)
                bar.update((len(block) - len(group)) * epochs)
                if file is not None and processes.rank() == 0:
                    found = [done.get(r) for r in range(runs)]
                    checkpoint.save(file, {"runs": [run and asdict(run) for run in found]})

        missing = [r for r in range(runs) if r not in done]
        blocks = [missing[k : k + together] for k in range(0, len(missing), together)]
        # What is gathered has to be so in one order.
        workers.each(train_block, blocks, one_core=one_core and processes.size() == 1)
    return [done[r] for r in range(runs)]


def summary(runs: list[Run]) -> dict[str, Any]:
    """Return mean, spread and single figures as `results.json` has them."""
    test = torch.tensor([run.test for run in runs], dtype=torch.float64)
    validation = torch.tensor([run.validation for run in runs], dtype=torch.float64)
    best = torch.tensor([run.test_best for run in runs], dtype=torch.float64)
    return {
        "mean": test.mean().item(),
        "std": test.std(correction=1).item() if len(runs) > 1 else 0.0,
        "runs": test.tolist(),
        "best_epoch_mean": best.mean().item(),
        "validation_mean": validation.mean().item(),
    }
