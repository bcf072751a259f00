"""Where each data set keeps its images: files and labels, before anything is decoded."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .wording import shown

#: What systems and programs leave among images, and all that begins with a dot.
HIDDEN = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}

# Ten classes each of ImageNet-1K. The lists are those of Cazenavette et al., "Dataset Distillation
# by Matching Training Trajectories" (CVPR 2022), who give positions in the sorted list of the 1000
# classes (`Config` in utils.py of github.com/GeorgeCazenavette/mtt-distillation). The first two are
# Howard's Imagenette and Imagewoof (github.com/fastai/imagenette). "Bengal cat" and "green apple"
# there are ImageNet's tiger cat and Granny Smith.
IMAGENET_SUBSETS: dict[str, dict[str, str]] = {
    "imagenette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "imagewoof": {
        "n02086240": "Shih-Tzu",
        "n02087394": "Rhodesian ridgeback",
        "n02088364": "beagle",
        "n02089973": "English foxhound",
        "n02093754": "Border terrier",
        "n02096294": "Australian terrier",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
        "n02111889": "Samoyed",
        "n02115641": "dingo",
    },
    "imagefruit": {
        "n07718472": "cucumber",
        "n07720875": "bell pepper",
        "n07742313": "Granny Smith",
        "n07745940": "strawberry",
        "n07747607": "orange",
        "n07749582": "lemon",
        "n07753113": "fig",
        "n07753275": "pineapple",
        "n07753592": "banana",
        "n07768694": "pomegranate",
    },
    "imagemeow": {
        "n02123045": "tabby",
        "n02123159": "tiger cat",
        "n02123394": "Persian cat",
        "n02123597": "Siamese cat",
        "n02124075": "Egyptian cat",
        "n02127052": "lynx",
        "n02128757": "snow leopard",
        "n02128925": "jaguar",
        "n02129165": "lion",
        "n02129604": "tiger",
    },
    "imagesquawk": {
        "n01518878": "ostrich",
        "n01614925": "bald eagle",
        "n01806143": "peacock",
        "n01818515": "macaw",
        "n01819313": "sulphur-crested cockatoo",
        "n01843383": "toucan",
        "n01860187": "black swan",
        "n02007558": "flamingo",
        "n02051845": "pelican",
        "n02056570": "king penguin",
    },
    "imageyellow": {
        "n01531178": "goldfinch",
        "n01773157": "black and gold garden spider",
        "n02129165": "lion",
        "n02206856": "bee",
        "n03530642": "honeycomb",
        "n04146614": "school bus",
        "n07749582": "lemon",
        "n07753592": "banana",
        "n12057211": "yellow lady's slipper",
        "n12144580": "corn",
    },
}

FOLDER = """expected layout:
    PATH/train/<class>/*   training images, one folder for each class
    PATH/test/<class>/*    test images, the same class folders (`val` in place of `test` will do)"""

TINY_IMAGENET = """expected layout, that of tiny-imagenet-200.zip:
    PATH/wnids.txt                     the classes, one a line (n01443537, ...)
    PATH/words.txt                     their names (may be missing)
    PATH/train/<wnid>/images/*.JPEG    training images
    PATH/val/images/*.JPEG             the images tested on; those of PATH/test have no labels
    PATH/val/val_annotations.txt       the class of each, `val_0.JPEG<tab>n03444034<tab>...`"""

IMAGENET_SUBSET = """expected layout, of the whole ImageNet or of these ten classes alone:
    PATH/train/<wnid>/*    training images, <wnid> one of {wnids}
    PATH/val/<wnid>/*      test images (`test` in place of `val` will do)"""


@dataclass(frozen=True)
class Listing:
    """The files of a data set, class by class, with their labels."""

    root: Path
    class_names: list[str]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    folders: list[str]  # of the classes; their names are for reading
    left_out: list[str]  # what is not read, each with the reason


def describe(dataset: str) -> str:
    """Return the layout that `find` looks for, to be read by people."""
    if dataset == "tinyimagenet":
        return TINY_IMAGENET
    if dataset in IMAGENET_SUBSETS:
        return IMAGENET_SUBSET.format(wnids=", ".join(IMAGENET_SUBSETS[dataset]))
    return FOLDER


def find(dataset: str, root: Path) -> Listing:
    """List the images of a data set below `root`, or of the archive's own folder in it.

    Raises:
        FileNotFoundError: a part is missing; names it and the layout.
        ValueError: the parts do not fit each other.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"--data-dir: there is no folder {root}; {describe(dataset)}")
    root = root.resolve()
    if dataset == "tinyimagenet":
        return _tiny_imagenet(_unpacked(root, "tiny-imagenet-200"))
    if dataset in IMAGENET_SUBSETS:
        # imagenette2.tgz, imagenette2-320.tgz, ... unpack to a folder of their name.
        return _imagenet_subset(_unpacked(root, f"{dataset}*"), dataset)
    return _image_folder(root)


def _unpacked(root: Path, pattern: str) -> Path:
    """Return `root`, or the one folder in it that an archive was unpacked to."""
    if not (root / "train").is_dir():
        inside = [p for p in root.glob(pattern) if (p / "train").is_dir()]
        if len(inside) == 1:
            return inside[0]
    return root


#: Notes about images. Everything else is taken for an image, whatever its name, and named if it is
#: none.
NOTES = (
    *(".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
    *(".toml", ".ini", ".cfg", ".html", ".htm", ".py", ".sh"),
)


def _hidden(name: str) -> bool:
    # Copying to some systems leaves a hidden `._name.jpg` beside each file.
    return name.startswith(".") or name.casefold() in HIDDEN


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p.name))


class _Walk:
    """Lists the files of class folders: nothing hidden, no folder twice, none of another class."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: list[str] = []

    def files(self, part: Path, folder: str) -> list[Path]:
        """Return the files below `part`/`folder`, sorted."""
        found: list[str] = []
        own = os.path.realpath(part / folder)
        self._enter(str(part / folder), own, os.path.realpath(part), {own}, found)
        return [Path(path) for path in sorted(found)]

    # Paths as strings: a million Path objects take a minute.
    def _enter(self, folder: str, own: str, part: str, seen: set[str], found: list[str], /) -> None:
        try:
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._leave_out(folder, error.strerror or str(error))
            return
        for entry in entries:
            if _hidden(entry.name):
                continue
            if entry.is_file():
                if not entry.name.lower().endswith(NOTES):
                    found.append(entry.path)
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if _within(part, real):
                    self._leave_out(entry.path, "a link to a folder around the classes")
                elif _within(own, real) or real in seen:
                    self._leave_out(entry.path, "a link to a folder that is read already")
                elif _within(real, part) and not _within(real, own):
                    self._leave_out(entry.path, "a link to another class")
                else:
                    seen.add(real)
                    self._enter(entry.path, own, part, seen, found)
            else:
                self._leave_out(
                    entry.path, "a link to nothing" if entry.is_symlink() else "no ordinary file"
                )

    def loose(self, part: Path) -> None:
        """Name the files of a part that lie in no class folder."""
        for path in sorted(part.iterdir()):
            notes = path.name.lower().endswith(NOTES)
            if not path.is_dir() and not _hidden(path.name) and not notes:
                self._leave_out(str(path), "in no class folder")

    def labelled(self, part: Path, folders: list[str]) -> list[tuple[Path, int]]:
        return [(path, c) for c, name in enumerate(folders) for path in self.files(part, name)]

    def _leave_out(self, path: str, reason: str) -> None:
        self.left_out.append(shown(f"{os.path.relpath(path, self.root)} ({reason})"))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))  # noqa: PTH118 - as above


def _parts(root: Path, layout: str) -> tuple[Path, Path]:
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise FileNotFoundError(f"--data-dir: {root} needs `train` and `test` folders; {layout}")
    return train, test


def _image_folder(root: Path) -> Listing:
    train, test = _parts(root, FOLDER)
    folders, test_folders = _class_folders(train), _class_folders(test)
    if len(folders) < 2:
        raise ValueError(f"--data-dir: {train} has {len(folders)} class folders; {FOLDER}")
    # ImageNet's own test images have no labels; who has `test` without and `val` with classes means
    # the latter.
    if folders != test_folders and (root / "val").is_dir() and test.name == "test":
        test = root / "val"
        test_folders = _class_folders(test)
    if folders != test_folders:
        odd = sorted(set(folders) ^ set(test_folders))
        raise ValueError(
            f"--data-dir: {train} and {test} hold different classes, for example "
            f"{', '.join(odd[:5])}; {FOLDER}"
        )
    walk = _Walk(root)
    files = walk.labelled(train, folders), walk.labelled(test, folders)
    for part in (train, test):
        walk.loose(part)
    return Listing(root, _names(root, folders), *files, folders, walk.left_out)


def _imagenet_subset(root: Path, dataset: str) -> Listing:
    layout = describe(dataset)
    classes = IMAGENET_SUBSETS[dataset]
    train = root / "train"
    tests = [root / name for name in ("val", "test") if (root / name).is_dir()]
    if not train.is_dir() or not tests:
        raise FileNotFoundError(f"--data-dir: {root} needs `train` and `val` folders; {layout}")
    # The whole of ImageNet has a `test` folder without labels beside `val`.
    test = next((p for p in tests if any((p / wnid).is_dir() for wnid in classes)), tests[0])
    for folder in (train, test):
        missing = [wnid for wnid in classes if not (folder / wnid).is_dir()]
        if missing:
            loose = next(folder.glob("*.JPEG"), None)
            hint = f"; {loose.name} and others have to be sorted into them" if loose else ""
            raise FileNotFoundError(
                f"--data-dir: {folder} lacks the class folders {', '.join(missing)}{hint}; for "
                f"classes of your own take --dataset imagefolder; {layout}"
            )
    wnids = sorted(classes)
    walk = _Walk(root)
    files = walk.labelled(train, wnids), walk.labelled(test, wnids)
    return Listing(root, [classes[wnid] for wnid in wnids], *files, wnids, walk.left_out)


def _tiny_imagenet(root: Path) -> Listing:
    train, val = root / "train", root / "val"
    annotations = val / "val_annotations.txt"
    for part in (root / "wnids.txt", train, val):
        if not part.exists():
            raise FileNotFoundError(f"--data-dir: there is no {part}; {TINY_IMAGENET}")
    wnids = sorted((root / "wnids.txt").read_text(encoding="utf-8").split())
    missing = [wnid for wnid in wnids if not (train / wnid).is_dir()]
    if missing or len(wnids) < 2:
        lacks = f"lacks the class folders {', '.join(missing[:5])}" if missing else "has no classes"
        raise FileNotFoundError(f"--data-dir: {train} {lacks}; {TINY_IMAGENET}")
    walk = _Walk(root)
    if annotations.exists():
        label = {wnid: c for c, wnid in enumerate(wnids)}
        test = []
        for line in annotations.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            name, wnid, *_ = [*line.split("\t"), ""]
            if wnid not in label:
                raise ValueError(
                    f"--data-dir: {annotations} says {line!r}, and wnids.txt has no such class; "
                    f"{TINY_IMAGENET}"
                )
            test.append((val / "images" / name, label[wnid]))
        test.sort(key=lambda item: item[0])
    elif all((val / wnid).is_dir() for wnid in wnids):  # sorted into class folders by hand
        test = walk.labelled(val, wnids)
    else:
        raise FileNotFoundError(f"--data-dir: there is no {annotations}; {TINY_IMAGENET}")
    train_files = walk.labelled(train, wnids)
    return Listing(root, _names(root, wnids), train_files, test, wnids, walk.left_out)


def _names(root: Path, folders: list[str]) -> list[str]:
    """Name the classes: ImageNet's by the first word of a list beside them, others as they are."""
    names: dict[str, str] = {}
    for file in ("words.txt", "LOC_synset_mapping.txt"):
        path = root / file
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                match = re.fullmatch(r"(n\d{8})\s+([^,]+).*", line)
                if match:
                    names[match[1]] = match[2].strip()
    readable = [names.get(folder, folder) for folder in folders]
    # ImageNet has two classes called crane, and two called maillot.
    return [
        f"{name} ({folder})" if readable.count(name) > 1 else name
        for name, folder in zip(readable, folders, strict=True)
    ]
