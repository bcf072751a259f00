"""Folders of images, read once with Pillow into one uint8 array and kept in a cache file."""

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

LAYOUT = """expected layout:
    PATH/train/<class>/*   training images, one folder for each class
    PATH/test/<class>/*    test images, the same class folders (`val` in place of `test` will do)"""


def class_folders(root: Path) -> tuple[Path, Path, list[str]]:
    """Return the training folder, the test folder and the class names of `root`."""
    if not root.is_dir():
        raise FileNotFoundError(f"--data-dir: there is no folder {root}; {LAYOUT}")
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise FileNotFoundError(f"--data-dir: {root} needs `train` and `test` folders; {LAYOUT}")
    classes = sorted(p.name for p in train.iterdir() if p.is_dir())
    test_classes = sorted(p.name for p in test.iterdir() if p.is_dir())
    if len(classes) < 2:
        raise ValueError(f"--data-dir: {train} has {len(classes)} class folders; {LAYOUT}")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(
            f"--data-dir: {train} and {test} hold different classes, for example "
            f"{', '.join(odd[:5])}; {LAYOUT}"
        )
    return train, test, classes


def _image_files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    return sorted(found)


def guess_image_size(root: Path) -> int:
    """Return the usual shorter side of the training images, a multiple of 8 between 16 and 128."""
    train, _, classes = class_folders(root)
    sides = []
    for name in classes:
        for path in _image_files(train / name)[:10]:
            try:
                with Image.open(path) as image:  # reads the header only
                    sides.append(min(image.size))
            except (OSError, UnidentifiedImageError):
                continue  # named when the folder is read
    if not sides:
        raise ValueError(f"--data-dir: no readable image below {train}; {LAYOUT}")
    usual = sorted(sides)[len(sides) // 2]
    return min(max(usual // 8 * 8, 16), 128)


def _decode(path: Path, size: int) -> np.ndarray:
    """Return the central square of the image as (size, size, 3) uint8."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")  # grey and palette images too; raises when the file is cut off
    side = min(rgb.size)
    if rgb.size != (size, size):
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = (left, top, left + side, top + side)
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=square, reducing_gap=3.0)
    return np.asarray(rgb)


def _read_part(
    folder: Path, classes: list[str], size: int, skipped: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    files = [(path, c) for c, name in enumerate(classes) for path in _image_files(folder / name)]
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    labels = np.empty(len(files), dtype=np.int64)
    n = 0
    for path, c in tqdm(files, desc=f"reading {folder.name}", unit="image", leave=False):
        try:
            images[n] = _decode(path, size)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            skipped.append(f"{path.relative_to(folder.parent)} ({error})")
            continue
        labels[n] = c
        n += 1
    present = np.bincount(labels[:n], minlength=len(classes))
    if not present.all():
        raise ValueError(
            f"--data-dir: no readable image in {folder / classes[int(present.argmin())]}; {LAYOUT}"
        )
    return images[:n].transpose(0, 3, 1, 2).copy(), labels[:n]


def _fingerprint(parts: tuple[Path, Path], size: int) -> str:
    """Name the content: every path with its length and date, and the size decoded to."""
    digest = hashlib.sha256(f"2 {size}".encode())
    for part in parts:
        for folder, _, names in sorted(os.walk(part)):
            for name in sorted(names):
                stat = Path(folder, name).stat()
                digest.update(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def cache_folder() -> Path:
    """Where decoded images are kept: `$XDG_CACHE_HOME/ncfd`, by default `~/.cache/ncfd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ncfd"


def read_folder(root: Path, size: int) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Read every image below `root` as `size` x `size` RGB.

    Returns:
        Arrays `train_images` (N, 3, size, size) uint8, `train_labels` (N,) int64, `test_images`,
        `test_labels`; the class names; the files skipped because they could not be read, each
        with the reason.
    """
    root = root.resolve()
    train, test, classes = class_folders(root)
    path = cache_folder() / f"{root.name}-{size}-{_fingerprint((train, test), size)}.npz"
    names = ("train_images", "train_labels", "test_images", "test_labels")
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                arrays = {name: stored[name] for name in names}
                return arrays, classes, stored["skipped"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink()  # a damaged cache is only a cache
    skipped: list[str] = []
    arrays = {}
    for part, folder in (("train", train), ("test", test)):
        images, labels = _read_part(folder, classes, size, skipped)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, skipped=np.array(skipped, dtype=str), **arrays)
        temporary.replace(path)
    except OSError:  # no room or no permission: the images are in memory, so go on without
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return arrays, classes, skipped
