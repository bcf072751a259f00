"""A distilled set beside others, under one recipe: baselines, other architectures, scores."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import architectures, evaluation, processes, scores, training, workers
from .data import Data
from .evaluation import Run


@dataclass(frozen=True)
class Stored:
    """Images (N, channels, H, W) in [0, 1], or uint8, with labels (N,) and their ρ."""

    images: Tensor
    labels: Tensor
    factor: int = 1
    soft_labels: Tensor | None = None  # (N·ρ², C) probabilities, in place of the labels


@dataclass(frozen=True)
class Recipe:
    """How every evaluation network is trained, whatever it is trained on."""

    epochs: int
    runs: int
    seed: int
    width: int  # of the ConvNet
    depth: int
    full_epochs: int = 1  # passes over the whole training part, where that is judged
    amp: bool = False  # bfloat16 products, in the ConvNet


@dataclass
class Verdict:
    """Evaluation runs by name."""

    headline: str  # the set in question
    sets: dict[str, list[Run]] = field(default_factory=dict)  # by the first architecture
    networks: dict[str, list[Run]] = field(default_factory=dict)  # by others, the one in question
    plain: dict[str, list[Run]] = field(default_factory=dict)  # without augmentation
    full_epochs: int = 0

    def results(self) -> dict[str, Any]:
        """Return the parts of `results.json` that come from here."""
        summaries = {name: evaluation.summary(runs) for name, runs in self.sets.items()}
        if "full" in summaries:
            summaries["full"]["epochs"] = self.full_epochs
        accuracy = summaries[self.headline]
        found = {
            "accuracy": accuracy,
            "baselines": {k: v for k, v in summaries.items() if k != self.headline},
            "cross_architecture": {k: evaluation.summary(v) for k, v in self.networks.items()},
            "scores": {},
        }
        if self.plain:
            plain = {name: evaluation.summary(runs) for name, runs in self.plain.items()}
            random, full = summaries["random"]["mean"], summaries["full"]["mean"]
            found["without_augmentation"] = plain
            found["scores"] = {
                "label_robust": scores.label_robust(
                    distilled=accuracy["mean"], random=random, full=full
                ),
                "augmentation_robust": scores.augmentation_robust(
                    distilled=accuracy["mean"],
                    random=random,
                    distilled_plain=plain[self.headline]["mean"],
                    random_plain=plain["random"]["mean"],
                ),
            }
        return found

    def curves(self) -> dict[str, list[list[list[float]]]]:
        """Return [epoch, test, validation] of each run by what it was."""
        named = self.sets | {f"{self.headline}, {k}": runs for k, runs in self.networks.items()}
        return {name: [run.curve for run in runs] for name, runs in named.items()}


def judge(
    data: Data,
    sets: dict[str, Stored],
    recipe: Recipe,
    *,
    headline: str,
    networks: list[str],
    with_scores: bool,
    folder: Path | None = None,
) -> Verdict:
    """Train evaluation networks on every set.

    Args:
        data: test and validation images, normalisation.
        sets: by name. `full` is the whole training part; scores need it and `random`.
        recipe: the same for all.
        headline: the set that is also given to other architectures.
        networks: the architecture for all sets, and those others.
        with_scores: judge also without augmentation, for the scores.
        folder: finished runs are kept there and not repeated.
    """

    first, *others = networks
    made = {}
    for architecture in networks:
        with torch.random.fork_rng(devices=[]):  # layers are made with weights that nobody uses
            made[architecture] = architectures.make(
                architecture,
                data.channels,
                data.size,
                data.num_classes,
                width=recipe.width,
                depth=recipe.depth,
                amp=recipe.amp,
            ).to(data.device)

    def run(chosen: tuple[str, str, bool]) -> list[Run]:
        name, architecture, augment = chosen
        stored = sets[name]
        label = "-".join(
            [name, *[architecture] * (architecture != "convnet"), *["plain"] * (not augment)]
        )
        return evaluation.evaluate(
            made[architecture],
            data,
            stored.images,
            stored.labels,
            factor=stored.factor,
            epochs=recipe.full_epochs if name == "full" else recipe.epochs,
            runs=recipe.runs,
            seed=recipe.seed,
            name=f"evaluating {label}",
            augment=augment,
            soft_labels=stored.soft_labels,
            file=folder / f"evaluation-{label}.pt" if folder else None,
        )

    plain = (headline, "random") if with_scores else ()
    wanted = [
        *((name, first, True) for name in sets),
        *((headline, other, True) for other in others),
        *((name, first, False) for name in plain),
    ]
    one_core = training.one_core_each(data) and processes.size() == 1
    found = workers.each(run, wanted, one_core=one_core, waits=True)
    judged = dict(zip(wanted, found, strict=True))
    return Verdict(
        headline,
        {name: judged[name, first, True] for name in sets},
        {name: judged[headline, name, True] for name in others},
        {name: judged[name, first, False] for name in plain},
        recipe.full_epochs,
    )
