"""Data sets as uint8 tensors on the device, and fresh real batches for each class."""

import contextlib
import hashlib
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import cache, imagefolder, layouts
from .layouts import IMAGENET_SUBSETS
from .randomness import generator, sent
from .wording import shown

FOLDERS = ("imagefolder", "tinyimagenet", *IMAGENET_SUBSETS)
DATASETS = ("digits", "cifar10", "cifar100", *FOLDERS)

#: Share of each training class held out for every choice made during a run.
VALIDATION_SHARE = 0.1
DIGITS_VALIDATION_SHARE = 0.2


@dataclass
class Data:
    """Three disjoint parts, images (N, channels, size, size) uint8 and labels (N,) in [0, C)."""

    name: str
    class_names: list[str]
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor  # (channels, 1, 1), of the training part in [0, 1]
    std: Tensor
    skipped: list[str] = field(default_factory=list)  # files that were left out

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[2]

    @property
    def device(self) -> torch.device:
        return self.train_images.device

    def normalise(self, images: Tensor) -> Tensor:
        """Map uint8 images, or float images in [0, 1], to mean 0 and standard deviation 1."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self.mean) / self.std

    def counts(self) -> Tensor:
        """Training images of each class, (C,)."""
        return torch.bincount(self.train_labels.cpu(), minlength=self.num_classes)

    def summary(self) -> dict[str, Any]:
        """Say how much there is, as `results.json` has it."""
        counts = self.counts()
        return {
            "classes": self.num_classes,
            "class_names": [shown(name) for name in self.class_names],
            "train": len(self.train_labels),
            "train_per_class": [int(counts.min()), int(counts.max())],
            "validation": len(self.validation_labels),
            "test": len(self.test_labels),
            "size": self.size,
            "channels": self.channels,
        }

    def repeats(self, ipc: int) -> list[str]:
        """Name the classes with fewer training images than are stored of each."""
        few = [
            f"{name} ({count})"
            for name, count in zip(self.class_names, self.counts().tolist(), strict=True)
            if count < ipc
        ]
        if not few:
            return []
        shown = ", ".join(few[:5]) + f" and {len(few) - 5} more" * (len(few) > 5)
        return [f"fewer training images than --ipc {ipc}, so that sets repeat them: {shown}"]

    def fingerprint(self) -> str:
        """Name the content of the training and validation parts, wherever they came from."""
        digest = hashlib.blake2b(repr((self.mean.tolist(), self.std.tolist())).encode())
        for part in (
            self.train_images,
            self.train_labels,
            self.validation_images,
            self.validation_labels,
        ):
            digest.update(repr(part.shape).encode())
            for piece in part.split(65536):
                digest.update(piece.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def default_image_size(dataset: str, data_dir: Path | None) -> int:
    """Return the side in pixels a data set is used at unless `--image-size` says otherwise."""
    if dataset == "imagefolder":
        return imagefolder.guess_image_size(
            layouts.find(dataset, required_folder(dataset, data_dir))
        )
    if dataset in IMAGENET_SUBSETS:
        return 128
    return {"digits": 16, "cifar10": 32, "cifar100": 32, "tinyimagenet": 64}[dataset]


def load(
    dataset: str,
    data_dir: Path | None,
    size: int,
    device: torch.device,
    *,
    use_cache: bool = True,
) -> Data:
    """Read a data set, hold out a validation part of its training images, move all to `device`.

    The split is the same for every seed, so that runs differ by their own randomness only.
    """
    skipped: list[str] = []
    folders: list[str] = []
    share = VALIDATION_SHARE
    if dataset == "digits":
        arrays, names = _digits(size)
        share = DIGITS_VALIDATION_SHARE
    elif dataset in ("cifar10", "cifar100") and not (data_dir and (data_dir / "train").is_dir()):
        arrays, names = _cifar(dataset, data_dir, size)
    else:
        listing = layouts.find(dataset, required_folder(dataset, data_dir))
        decoded = imagefolder.read(listing, size, use_cache)
        names, folders = listing.class_names, listing.folders
        skipped, first_test = decoded.skipped, len(decoded.train_labels)
        arrays = {
            "train_images": decoded.images[:first_test],
            "train_labels": decoded.train_labels,
            "test_images": decoded.images[first_test:],
            "test_labels": decoded.test_labels,
        }
    folders = folders or names
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    kept, held = _held_out(tensors["train_labels"], folders, share)
    images, labels = tensors["train_images"], tensors["train_labels"]
    train_images = images[kept]
    mean, std = _statistics(train_images)
    return Data(
        name=dataset,
        class_names=names,
        train_images=train_images.to(device),
        train_labels=labels[kept].to(device),
        validation_images=images[held].to(device),
        validation_labels=labels[held].to(device),
        # A copy: nobody knows what becomes of the file of the cache during a run.
        test_images=tensors["test_images"].to(device, copy=True).contiguous(),
        test_labels=tensors["test_labels"].to(device),
        mean=mean[:, None, None].to(device),
        std=std[:, None, None].to(device),
        skipped=skipped,
    )


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images, in [0, 1]."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for piece in images.split(1024):  # no float copy of a large data set
        x = piece.float() / 255
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).double()
    mean, square = sums / images[:, 0].numel()
    return mean.float(), (square - mean**2).clamp(min=1e-6).sqrt().float()


def required_folder(dataset: str, data_dir: Path | None) -> Path:
    """Return `--data-dir`, or say that it is missing."""
    if data_dir is None:
        raise ValueError(f"--dataset {dataset} needs --data-dir PATH; {layouts.describe(dataset)}")
    return data_dir


def _held_out(labels: Tensor, classes: list[str], share: float) -> tuple[Tensor, Tensor]:
    """Split indices into kept and held out, the same share of every class, at least one each."""
    order = torch.randperm(len(labels), generator=generator(0, "validation split"))
    kept, held = [], []
    for c, name in enumerate(classes):
        members = order[labels[order] == c]
        if len(members) < 2:
            raise ValueError(
                f"class {shown(name)} has {len(members)} training image(s); at least 2 are needed, "
                "one to train on and one to validate with"
            )
        count = max(1, round(share * len(members)))
        held.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _digits(size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return scikit-learn's 1797 digits of 8x8 pixels, enlarged; every third one is a test image.

    At 16 pixels the sub-images of a packed image (ρ = 2) have the 8x8 pixels of the originals.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(
        images, size=(size, size), mode="bilinear", align_corners=False
    )
    images = (images * 255).round().to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    order = torch.randperm(len(labels), generator=generator(0, "digits test")).numpy()
    test[order[: len(labels) // 3]] = True
    arrays = {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }
    return arrays, [str(name) for name in bunch.target_names]


def _cifar(
    dataset: str, data_dir: Path | None, size: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Download CIFAR through torchvision, or read it where a former run left it."""
    from torchvision import datasets

    try:
        root = data_dir or cache.folder() / "torchvision"
    except OSError as error:
        raise ValueError(f"--dataset {dataset} needs --data-dir PATH: {error}") from error
    was_there = root.exists()
    kind = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
    arrays: dict[str, np.ndarray] = {}
    names: list[str] = []
    for part in ("train", "test"):
        try:
            stored = kind(str(root), train=part == "train", download=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            if not was_there:  # torchvision makes it, be its name misspelt
                with contextlib.suppress(OSError):
                    root.rmdir()
            raise ConnectionError(
                f"--dataset {dataset} is neither below {root} nor could it be downloaded "
                f"({error}). Put torchvision's archive there (--data-dir PATH), or use images on "
                f"disk with --dataset imagefolder --data-dir PATH; {layouts.FOLDER}"
            ) from error
        images = torch.from_numpy(stored.data).permute(0, 3, 1, 2)
        if size != images.shape[-1]:
            chunks = [
                torch.nn.functional.interpolate(
                    chunk.float(), size=(size, size), mode="bilinear", antialias=True
                )
                for chunk in images.split(4096)
            ]
            images = torch.cat([c.round().clamp(0, 255).to(torch.uint8) for c in chunks])
        arrays[f"{part}_images"] = images.contiguous().numpy()
        arrays[f"{part}_labels"] = np.asarray(stored.targets, dtype=np.int64)
        names = list(stored.classes)
    return arrays, names


class RealBatches:
    """Real images of every class in turn, each image once before any comes again.

    Each class is walked through in its own shuffled order and shuffled again at its end, so the
    images of one batch are all different. Everything stays on the device of the data.

    Args:
        data: the training part is used.
        per_class: images of each class in a batch; classes with fewer give all they have.
        generator: CPU generator of the orders.
    """

    def __init__(self, data: Data, per_class: int, generator: torch.Generator) -> None:
        self.data = data
        self.generator = generator
        labels = data.train_labels.cpu()
        self.members = [torch.nonzero(labels == c).flatten() for c in range(data.num_classes)]
        self.take = [min(per_class, len(m)) for m in self.members]
        self.orders = [torch.empty(0, dtype=torch.int64) for _ in self.members]

    def choose(self) -> list[Tensor]:
        """Choose a batch: for each class the indices (N_c,) of its images."""
        picks = []
        for c, (members, take) in enumerate(zip(self.members, self.take, strict=True)):
            if len(self.orders[c]) < take:
                order = torch.randperm(len(members), generator=self.generator)
                self.orders[c] = members[order]
            picks.append(self.orders[c][:take])
            self.orders[c] = self.orders[c][take:]
        return picks

    def fetch(self, picks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return normalised images (Σ_c N_c, channels, H, W) and labels, those of picks[0] first.

        Labels count the entries of `picks`.
        """
        counts = torch.tensor([len(pick) for pick in picks])
        labels = torch.repeat_interleave(torch.arange(len(picks)), counts)
        chosen, labels = sent(torch.stack([torch.cat(picks), labels]), self.data.device)
        return self.data.normalise(self.data.train_images[chosen]), labels

    def draw(self) -> tuple[Tensor, Tensor]:
        """Choose and fetch a batch of every class."""
        return self.fetch(self.choose())

    def state_dict(self) -> dict[str, Any]:
        # Cloned: a slice would be saved with the whole order behind it.
        return {"orders": [order.clone() for order in self.orders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.orders = list(state["orders"])
