"""Image files of any kind, decoded with Pillow on all cores into one uint8 array."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from . import cache
from .layouts import Listing, describe

#: What Pillow raises for files that are no images, cut off, damaged, or far too large.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

#: Raise it whenever the decoding below gives other pixels than before.
RECIPE = 3


@dataclass(frozen=True)
class Decoded:
    """Images (N, channels, size, size) uint8; `train_labels` belong to the first of them."""

    images: np.ndarray
    train_labels: np.ndarray  # (N_train,) int64
    test_labels: np.ndarray
    skipped: list[str]  # files that could not be read, each with the reason


def guess_image_size(listing: Listing) -> int:
    """Return the usual shorter side of the training images, a multiple of 8 between 16 and 128."""
    by_class: dict[int, int] = {}
    sides = []
    for path, c in listing.train:
        by_class[c] = by_class.get(c, 0) + 1
        if by_class[c] > 10:
            continue
        try:
            with Image.open(path) as image:  # reads the header only
                sides.append(min(image.size))
        except UNREADABLE:
            continue  # named when the folder is read
    if not sides:
        raise ValueError(
            f"--data-dir: no readable training image below {listing.root}; {describe('')}"
        )
    usual = sorted(sides)[len(sides) // 2]
    return min(max(usual // 8 * 8, 16), 128)


def decode(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """Return the central square of an image, (3, size, size) uint8, and whether it is grey."""
    with Image.open(path) as image:
        width, height = image.size
        # Let the JPEG decoder leave out what a reduction to half and less would average anyway.
        image.draft(None, (2 * size, 2 * size))
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F")
        rgb = _rgb(image)
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        x, y = rgb.width / width, rgb.height / height  # 1 unless the decoder reduced it
        right, bottom = min((left + side) * x, rgb.width), min((top + side) * y, rgb.height)
        square = (left * x, top * y, right, bottom)
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=square, reducing_gap=3.0)
    return np.asarray(rgb).transpose(2, 0, 1), grey


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: palettes, CMYK, 16 bits; what is transparent becomes white, as on a page."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        if values.max() > 255:  # 16 bits
            values = values / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


class _Reader:
    """Decodes the files of a listing in order, in pieces, and notes which could not be read."""

    def __init__(self, listing: Listing, size: int) -> None:
        self.listing, self.size = listing, size
        self.files = [*listing.train, *listing.test]
        self._restart()

    def _restart(self) -> None:
        self.labels: list[int] = []
        self.train_count = 0
        self.grey = True
        self.skipped: list[str] = []

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield (n, 3, size, size) arrays, from the first file on."""
        self._restart()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        with (
            ThreadPoolExecutor(max(cores, 1)) as pool,  # Pillow works without the interpreter lock
            tqdm(total=len(self.files), desc="reading", unit="image", leave=False) as bar,
        ):
            # In pieces, so that what is decoded but not yet taken stays small.
            for first in range(0, len(self.files), 1024):
                piece = self.files[first : first + 1024]
                images = []
                for n, (image, reason) in enumerate(pool.map(self._decode, piece), first):
                    path, label = self.files[n]
                    if image is None:
                        self.skipped.append(f"{path.relative_to(self.listing.root)} ({reason})")
                        continue
                    images.append(image)
                    self.labels.append(label)
                    self.train_count += n < len(self.listing.train)
                bar.update(len(piece))
                if images:
                    yield np.stack(images)

    def _decode(self, file: tuple[Path, int]) -> tuple[np.ndarray | None, str]:
        try:
            image, grey = decode(file[0], self.size)
        except UNREADABLE as error:
            return None, " ".join(str(error).split())
        if not grey:
            self.grey = False
        return image, ""

    def meta(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "train_count": self.train_count,
            "grey": self.grey,
            "skipped": self.skipped,
        }


def _name(listing: Listing, size: int) -> str:
    """Name the content: every path with its label, length and date, and how it is decoded."""
    files = []
    for path, label in (*listing.train, *listing.test):
        try:
            stat = path.stat()
            files.append((str(path), label, stat.st_size, stat.st_mtime_ns))
        except OSError:  # listed by the data set, and not there: named when it is read
            files.append((str(path), label, 0, 0))
    parts = (RECIPE, PIL.__version__, size, len(listing.train), files)
    return f"images/{listing.root.name}-{size}-{cache.key(*parts)}"


def read(listing: Listing, size: int, use_cache: bool = True) -> Decoded:
    """Decode every image of a listing to `size` x `size`, or take them from the cache.

    Images are RGB, unless all of them are grey: those have one channel.

    Raises:
        ValueError: a class has no readable image in one of the parts.
    """
    reader = _Reader(listing, size)
    if not use_cache:
        return _decoded(listing, np.concatenate([*reader.pieces()] or [_none(size)]), reader.meta())
    name = _name(listing, size)
    meta = cache.read_json(f"{name}.json")
    images = cache.read_rows(name) if meta is not None else None
    if meta is None or images is None or len(images) != len(meta["labels"]):
        try:
            cache.write_rows(name, reader.pieces(), len(reader.files), (3, size, size))
            meta = reader.meta()
            cache.write_json(f"{name}.json", meta)
            images = cache.read_rows(name)
        except OSError as error:
            cache.report(f"decoded images are not kept ({error.strerror or error})")
            images = None
        if images is None:
            images = np.concatenate([*reader.pieces()] or [_none(size)])
            meta = reader.meta()
    assert meta is not None
    return _decoded(listing, images, meta)


def _none(size: int) -> np.ndarray:
    return np.empty((0, 3, size, size), dtype=np.uint8)


def _decoded(listing: Listing, images: np.ndarray, meta: dict[str, Any]) -> Decoded:
    labels = np.asarray(meta["labels"], dtype=np.int64)
    train, test = labels[: meta["train_count"]], labels[meta["train_count"] :]
    for part, present in (("training", train), ("test", test)):
        counts = np.bincount(present, minlength=len(listing.class_names))
        if not counts.all():
            name = listing.class_names[int(counts.argmin())]
            raise ValueError(
                f"--data-dir: class {name} has no readable {part} image below {listing.root}"
                + "".join(f"\n    {line}" for line in meta["skipped"][:5])
            )
    if meta["grey"]:
        images = images[:, :1]
    return Decoded(images, train, test, meta["skipped"])
