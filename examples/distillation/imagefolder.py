"""Image files of any kind, decoded with Pillow on all cores into one uint8 array."""

import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from . import cache
from .layouts import Listing, describe
from .wording import shown

#: What Pillow raises for files that are no images, cut off, damaged, or far too large.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError),
    *(struct.error, LookupError, TypeError, ArithmeticError, RuntimeError, AssertionError),
)

#: What a file is decides its content, not its name. Not here: what runs another program (EPS, PDF),
#: and what anything could be taken for (TGA).
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI"),
    *("SGI", "TIFF", "WEBP"),
)

MAX_SAMPLE, PHOTOMETRIC = 281, 262  # tags of TIFF
ORIENTATION = 274  # of EXIF
FLIPS = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Raise it whenever the decoding below gives other pixels than before.
RECIPE = 4


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
            with open_image(path) as image:  # reads the header only
                sides.append(min(image.size))
        except UNREADABLE:
            continue  # named when the folder is read
    if not sides:
        raise ValueError(
            f"--data-dir: no readable training image below {listing.root}; {describe('')}"
        )
    usual = sorted(sides)[len(sides) // 2]
    return min(max(usual // 8 * 8, 16), 128)


def open_image(path: Path) -> Image.Image:
    """Open an image of a known format; its pixels are not read yet."""
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def decode(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """Return the central square of an image, (3, size, size) uint8, and whether it is grey."""
    with open_image(path) as image:
        width, height = image.size
        # Let the JPEG decoder leave out what a reduction to half and less would average anyway.
        image.draft(None, (2 * size, 2 * size))
        mode = image.mode
        grey = mode in ("1", "L", "LA", "La", "F") or mode.startswith("I")
        if mode in ("P", "PA"):  # GIF has nothing but palettes
            red, green, blue = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            grey = bool((red == green).all() and (green == blue).all())
        turn = _turn(image)
        rgb = _rgb(image)
        if image.format == "TIFF":  # Pillow turns these itself
            turn, (width, height) = None, rgb.size
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn not in FLIPS:
            width, height = height, width
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        x, y = rgb.width / width, rgb.height / height  # 1 unless the decoder reduced it
        right, bottom = min((left + side) * x, rgb.width), min((top + side) * y, rgb.height)
        square = (left * x, top * y, right, bottom)
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=square, reducing_gap=3.0)
    return np.asarray(rgb).transpose(2, 0, 1), grey


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: palettes, CMYK, 16 bits; what is transparent becomes white, as on a page.

    White is 65535 in 16 bits, unless a TIFF file names another largest value, and 1 in floating
    point, whatever the values are: two images of one kind stay comparable.

    Raises:
        ValueError: there is no rule for white, or values lie beyond it.
    """
    if image.mode.startswith(("I", "F")):
        tags = getattr(image, "tag_v2", {})
        values = np.asarray(image, dtype=np.float64)
        white = 1.0 if image.mode == "F" else float(np.max(tags.get(MAX_SAMPLE, 65535)))
        if image.mode == "I" and tags and MAX_SAMPLE not in tags:
            raise ValueError("integers of 32 bits, or with a sign, do not say what white is")
        if not np.isfinite(values).all():
            raise ValueError("some values are not finite")
        if values.min() < 0 or values.max() > white:
            found = f"{values.min():g} to {values.max():g}"
            raise ValueError(f"values from {found}; they must be from 0 to {white:g}")
        values = values * (255 / white)
        if tags.get(PHOTOMETRIC) == 0:  # white is 0 there
            values = 255 - values
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn the image, as the camera noted it."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged notes; the pixels may be whole
        return None


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
                        name = path.relative_to(self.listing.root)
                        self.skipped.append(shown(f"{name} ({reason})"))
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
        except UnidentifiedImageError:
            return None, "no image of a kind that is read"
        except UNREADABLE as error:
            reason = error.strerror if isinstance(error, OSError) else None
            return None, " ".join((reason or str(error) or type(error).__name__).split())
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
    skipped = [*meta["skipped"], *listing.left_out]
    train, test = labels[: meta["train_count"]], labels[meta["train_count"] :]
    for part, present in (("training", train), ("test", test)):
        counts = np.bincount(present, minlength=len(listing.class_names))
        if not counts.all():
            name = listing.folders[int(counts.argmin())]
            raise ValueError(
                f"--data-dir: class {name} has no readable {part} image below {listing.root}"
                + "".join(f"\n    {line}" for line in skipped[:5])
            )
    if meta["grey"]:
        images = images[:, :1]
    brightest = int(images.max())
    if brightest < 32:
        tqdm.write(
            f"note: every image is dark, with no value above {brightest} of 255: "
            "12 bits and less in files of 16 have to be scaled first",
            file=sys.stderr,
        )
    return Decoded(images, train, test, skipped)
