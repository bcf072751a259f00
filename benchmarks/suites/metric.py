"""Suite `metric`: NCFDMetric beside FID and KID (torchmetrics) on scikit-learn's digits.

All four see the 64 features of one small network, trained on images that are used for nothing else.
The other images are split at random into a real and a generated side, over and over, and the
generated side is damaged more and more. `value` is the mean over the splits, `sd` the standard
deviation; `deviations` is how far the mean lies above that of the undamaged split, in standard
deviations of the latter: what stands out of chance. The last kind of damage is one of features, not
of images: rows replaced by normal ones with the same mean and covariance, to the digit.

`null` has undamaged splits of growing size: a metric whose mean depends on the number of samples
can be compared at equal numbers only.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import scipy.stats
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.functional import gaussian_blur

from benchmarks.records import Records
from ncfd import GaussianFrequencies
from ncfd.metrics import NCFDMetric

NUM_FEATURES = 64
NUM_FREQUENCIES = 1024
TRAIN_IMAGES = 397
#: Images on each side of a comparison, and of the null splits.
ROWS = 300
NULL_ROWS = (25, 50, 100, 200, 400, 700)


class Extractor(nn.Module):
    """The features before the last layer of a small classifier, for images (N, 1, 8, 8).

    They are divided by their root mean square on the training images. The other metrics only change
    their unit by that; the kernel of KID, (x·y/D + 1)³, is made for features of about this size.
    """

    num_features = NUM_FEATURES  # what FID asks for

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(256, NUM_FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(NUM_FEATURES, 10)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) / self.unit


class Features(nn.Identity):
    """In place of the extractor, where features themselves are passed."""

    num_features = NUM_FEATURES


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels that the extractor has not seen, and the rest."""

    images: Tensor
    labels: Tensor
    train_images: Tensor
    train_labels: Tensor


def load(device: torch.device) -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].to(device), torch.from_numpy(bunch.target)[order].to(device)
    train, rest = slice(None, TRAIN_IMAGES), slice(TRAIN_IMAGES, None)
    return Digits(images[rest], labels[rest], images[train], labels[train])


def train(digits: Digits, steps: int) -> Extractor:
    device = digits.images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network = Extractor().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(steps):
        logits = network.head(network(digits.train_images))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, digits.train_labels).backward()
        optimizer.step()
    with torch.no_grad():
        network.unit.copy_(network(digits.train_images).square().mean().sqrt())
    return network.eval().requires_grad_(False)


def metrics(extractor: nn.Module, scale: float, n: int) -> dict[str, Metric]:
    """The four, all behind one extractor; `scale` is that of the frequencies."""
    law = GaussianFrequencies(NUM_FEATURES, NUM_FREQUENCIES, scale=scale)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        # One subset of everything: the whole U-statistic, without the noise of a choice.
        kid = KernelInceptionDistance(extractor, subsets=1, subset_size=n)
    return {
        "NCFD": NCFDMetric(law, feature_extractor=extractor),
        "NCFD, squared, unbiased": NCFDMetric(
            law, feature_extractor=extractor, squared=True, unbiased=True
        ),
        "FID": FrechetInceptionDistance(extractor),
        "KID": kid,
    }


# ------------------------------------------------------------------------------------------------
# Damage
# ------------------------------------------------------------------------------------------------


def noise(images: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """Normal noise of this standard deviation; pixels stay in [0, 1]."""
    added = torch.randn(images.shape, generator=g).to(images)
    return (images + strength * added).clamp(0, 1)


def blur(images: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """Gaussian blur with this standard deviation in pixels."""
    return images if strength == 0 else gaussian_blur(images, [7, 7], [strength, strength])


def repeated(images: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """Every image this many times, and so fewer different ones."""
    return images[: math.ceil(len(images) / strength)].repeat(int(strength), 1, 1, 1)[: len(images)]


def as_if_normal(features: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """This share of the rows replaced by normal ones with exactly their mean and covariance."""
    count = round(strength * len(features))
    if count == 0:
        return features
    old = features[:count].double().cpu()
    noise = torch.randn(old.shape, generator=g, dtype=torch.float64)
    noise = noise - noise.mean(0)
    # noise = Q R with QᵀQ = 1, so that Q times the root of the old rows' scatter has that scatter.
    orthonormal = torch.linalg.qr(noise).Q
    values, axes = torch.linalg.eigh((count - 1) * torch.cov(old.T))
    drawn = orthonormal @ (axes * values.clamp(min=0).sqrt()).T + old.mean(0)
    return torch.cat([drawn.to(features), features[count:]])


Damage = Callable[[Tensor, float, torch.Generator], Tensor]
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
    "blur": (0.0, 0.4, 0.5, 0.6, 0.8, 1.0),
    "missing classes": (0, 1, 2, 3, 4, 5),
    "repeated images": (1, 2, 4, 8, 16, 32),
    "normal features": (0.0, 0.3, 0.45, 0.6, 0.8, 1.0),
}
DAMAGES: dict[str, Damage] = {"noise": noise, "blur": blur, "repeated images": repeated}


def split(digits: Digits, g: torch.Generator, n: int, missing: int = 0) -> tuple[Tensor, Tensor]:
    """n real images and n others, these without images of the last `missing` of shuffled classes.

    The others come from half of the images, which leaves enough of each class for that.
    """
    order = torch.randperm(len(digits.images), generator=g).to(digits.images.device)
    half = len(order) // 2
    real, others = order[:half][:n], order[half:]
    dropped = torch.randperm(10, generator=g)[:missing].to(digits.labels)
    others = others[~torch.isin(digits.labels[others], dropped)]
    return digits.images[real], digits.images[others[:n]]


# ------------------------------------------------------------------------------------------------
# The study
# ------------------------------------------------------------------------------------------------


def run(device: torch.device, quick: bool, written: Records) -> None:
    R = 2 if quick else 30
    digits = load(device)
    extractor = train(digits, steps=5 if quick else 150)
    with torch.no_grad():
        right = extractor.head(extractor.body(digits.images)).argmax(1) == digits.labels
        distance = torch.pdist(extractor(digits.train_images))
    # The median heuristic, on images that are not compared.
    scale = 1 / distance.median().item()
    written.content["notes"] = [
        f"scikit-learn's digits, 8 x 8 pixels; {NUM_FEATURES} features of a network that "
        f"recognises {100 * right.double().mean().item():.1f} % of the {len(right)} images "
        f"compared here; {NUM_FREQUENCIES} normal frequencies with standard deviation 1 / median "
        f"distance of the features. {R} random splits; {ROWS} images on each side unless `n` says "
        "otherwise. FID and KID are torchmetrics' with the same network; KID on all images at "
        "once. The cost is processor time of update and compute of one comparison, features "
        "included. A Spearman correlation with k strengths, each as often, is at most √(1 - 1/k²)."
    ]
    for n in NULL_ROWS[1::3] if quick else NULL_ROWS:
        values, seconds = compare(extractor, scale, R, n, lambda g, n=n: split(digits, g, n))
        for name, found in values.items():
            row = {"metric": name, "n": n, "value": found.mean().item(), "sd": found.std().item()}
            written.add("null", {**row, "cpu_ms": 1e3 * seconds[name]})
    for kind, all_strengths in STRENGTHS.items():
        strengths = all_strengths[::5] if quick else all_strengths
        study(written, digits, extractor, scale, R, kind, strengths)


def study(
    written: Records,
    digits: Digits,
    extractor: Extractor,
    scale: float,
    R: int,
    kind: str,
    strengths: tuple[float, ...],
) -> None:
    """Rows of one kind of damage, and how the metrics follow it."""
    values: dict[str, list[Tensor]] = {}  # by metric; (R,) for each strength
    for strength in strengths:
        # A stream of its own, so that the splits are the same whatever the damage.
        chance = torch.Generator().manual_seed(1)

        def draw(
            g: torch.Generator, strength: float = strength, chance: torch.Generator = chance
        ) -> tuple[Tensor, Tensor]:
            missing = int(strength) if kind == "missing classes" else 0
            real, others = split(digits, g, ROWS, missing)
            if kind == "normal features":
                return extractor(real), as_if_normal(extractor(others), strength, chance)
            return real, DAMAGES[kind](others, strength, chance) if kind in DAMAGES else others

        shown = Features() if kind == "normal features" else extractor
        found, _ = compare(shown, scale, R, ROWS, draw)
        for name, value in found.items():
            values.setdefault(name, []).append(value)
            null = values[name][0]
            row = {"damage": kind, "strength": f"{strength:g}", "metric": name}
            row |= {"value": value.mean().item(), "sd": value.std().item()}
            deviations = ((value.mean() - null.mean()) / null.std()).item()
            written.add("sensitivity", {**row, "deviations": deviations})
    for name, found in values.items():
        means = [value.mean().item() for value in found]
        ranks = torch.tensor(strengths).repeat_interleave(R)
        written.add(
            "ranks",
            {
                "damage": kind,
                "metric": name,
                "spearman": float(scipy.stats.spearmanr(ranks, torch.cat(found)).statistic),
                "monotonic": all(a < b for a, b in pairwise(means)),
            },
        )


@torch.no_grad()
def compare(
    extractor: nn.Module,
    scale: float,
    R: int,
    n: int,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Values of every metric on R draws of the two sides, (R,) each, and processor seconds."""
    g = torch.Generator().manual_seed(n)
    contenders = metrics(extractor, scale, n)
    values: dict[str, list[float]] = {name: [] for name in contenders}
    seconds = dict.fromkeys(contenders, 0.0)
    for r in range(R):
        sides = draw(g)
        for name, metric in contenders.items():
            if r == 0:
                metric.to(sides[0].device)
            began = time.process_time()
            for side, real in zip(sides, (True, False), strict=True):
                metric.update(side, real=real)
            value = metric.compute()
            values[name].append((value[0] if name == "KID" else value).item())
            metric.reset()
            seconds[name] += (time.process_time() - began) / R
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}, seconds
