"""Small trees in the layout of each data set, and files of every kind."""

import os
import pickle
import subprocess
import sys
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from distillation import cache, imagefolder, layouts
from distillation import data as data_module
from PIL import Image

CPU = torch.device("cpu")


def save(path, seed, size=(20, 24)):
    """A plain colour that depends on the seed only, so that classes can be told apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(zlib.crc32(f"{seed} {k}".encode()) % 256 for k in range(3))
    Image.new("RGB", size, colour).save(path)
    return colour


def colours(data):
    """The colour of each class in the test part, from its first image."""
    first = [torch.nonzero(data.test_labels == c)[0, 0] for c in range(data.num_classes)]
    return [tuple(data.test_images[n, :, 4, 4].tolist()) for n in first]


def near(a, b):
    return all(
        abs(x - y) <= 3 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


# Layouts


def tiny_imagenet(root, wnids=("n02124075", "n01443537", "n04067472"), images=4):
    """The layout of tiny-imagenet-200.zip. Returns the colour of each class, sorted by wnid."""
    (root / "wnids.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{w}\n" for w in wnids))  # as there: not sorted
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n"
    )
    for wnid in wnids:
        for k in range(images):
            save(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", wnid, (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for k in range(2 * len(wnids)):
        wnid = wnids[k % len(wnids)]
        save(root / "val" / "images" / f"val_{k}.JPEG", wnid, (64, 64))
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for k in range(3):
        save(root / "test" / "images" / f"test_{k}.JPEG", "no label", (64, 64))
    return [save(root / "unused.png", wnid) for wnid in sorted(wnids)]


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_as_its_archive_has_it(tmp_path, inside):
    expected = tiny_imagenet(tmp_path / inside)
    size = data_module.default_image_size("tinyimagenet", tmp_path)
    data = data_module.load("tinyimagenet", tmp_path, size, CPU)
    assert data.class_names == ["goldfish", "Egyptian cat", "n04067472"]  # by wnid
    assert data.size == 64
    assert len(data.train_images) + len(data.validation_images) == 12
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2]  # val; test has no labels
    assert near(colours(data), expected)
    assert data.skipped == []


def test_tiny_imagenet_with_val_sorted_into_classes(tmp_path):
    expected = tiny_imagenet(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    for k in range(6):
        wnid = ("n02124075", "n01443537", "n04067472")[k % 3]
        save(tmp_path / "val" / wnid / "images" / f"{k}.JPEG", wnid, (64, 64))
    assert near(colours(data_module.load("tinyimagenet", tmp_path, 64, CPU)), expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), r"there is no .*wnids\.txt; expected layout"),
        (
            lambda root: (root / "val" / "val_annotations.txt").unlink(),
            r"there is no .*val_annotations\.txt; expected layout",
        ),
        (
            lambda root: (root / "train" / "n01443537").rename(root / "gone"),
            r"lacks the class folders n01443537; expected layout",
        ),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\t0\n"),
            r"wnids\.txt has no such class; expected layout",
        ),
    ],
)
def test_what_tiny_imagenet_lacks_is_named(tmp_path, broken, message):
    tiny_imagenet(tmp_path)
    broken(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        data_module.load("tinyimagenet", tmp_path, 64, CPU)


def test_an_annotated_image_that_is_not_there_is_named(tmp_path):
    tiny_imagenet(tmp_path)
    (tmp_path / "val" / "images" / "val_5.JPEG").unlink()
    data = data_module.load("tinyimagenet", tmp_path, 64, CPU)
    assert len(data.test_images) == 5
    (skipped,) = data.skipped
    assert "val_5.JPEG" in skipped


@pytest.mark.parametrize("dataset", layouts.IMAGENET_SUBSETS)
def test_subsets_are_taken_from_the_whole_of_imagenet(tmp_path, dataset):
    # Every class of every subset, more, and a test folder without labels.
    wnids = sorted({w for classes in layouts.IMAGENET_SUBSETS.values() for w in classes})
    for wnid in [*wnids, "n09999999"]:
        for k in range(3):
            save(tmp_path / "train" / wnid / f"{wnid}_{k}.JPEG", wnid)
        save(tmp_path / "val" / wnid / f"ILSVRC2012_val_{wnid}.JPEG", wnid)
    save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", "no label")
    data = data_module.load(dataset, tmp_path, 16, CPU)
    chosen = sorted(layouts.IMAGENET_SUBSETS[dataset])
    assert data.num_classes == len(chosen) == 10
    assert data.class_names == [layouts.IMAGENET_SUBSETS[dataset][w] for w in chosen]
    assert torch.bincount(data.test_labels).tolist() == [1] * 10
    assert near(colours(data), [save(tmp_path / "unused.png", w) for w in chosen])
    assert data_module.default_image_size(dataset, tmp_path) == 128


@pytest.mark.parametrize(
    ("dataset", "folder"), [("imagenette", "imagenette2-160"), ("imagewoof", "")]
)
def test_subsets_from_archives_of_their_own(tmp_path, dataset, folder):
    wnids = sorted(layouts.IMAGENET_SUBSETS[dataset])
    for wnid in wnids:
        for k in range(2):
            save(tmp_path / folder / "train" / wnid / f"{wnid}_{k}.JPEG", wnid)
        save(tmp_path / folder / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", wnid)
    (tmp_path / folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    data = data_module.load(dataset, tmp_path, 16, CPU)
    assert len(data.test_images) == 10
    assert near(colours(data), [save(tmp_path / "unused.png", w) for w in wnids])


def test_what_a_subset_lacks_is_named(tmp_path, tree):
    with pytest.raises(FileNotFoundError, match=r"lacks the class folders n02086240.*imagefolder"):
        data_module.load("imagewoof", tree, 16, CPU)
    with pytest.raises(FileNotFoundError, match=r"needs `train` and `val` folders; expected"):
        data_module.load("imagewoof", tmp_path / "tree" / "train", 16, CPU)
    for wnid in layouts.IMAGENET_SUBSETS["imagefruit"]:
        save(tmp_path / "flat" / "train" / wnid / "0.JPEG", wnid)
    save(tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(FileNotFoundError, match=r"val_00000001\.JPEG and others have to be sorted"):
        data_module.load("imagefruit", tmp_path / "flat", 16, CPU)


def test_the_lists_are_sixty_classes_of_ten():
    assert {len(classes) for classes in layouts.IMAGENET_SUBSETS.values()} == {10}
    # torchvision lists the names of the 1000 classes in the order of their wnids.
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    place = {name: k for k, name in enumerate(_IMAGENET_CATEGORIES)}
    every = {w: n for classes in layouts.IMAGENET_SUBSETS.values() for w, n in classes.items()}
    in_order = [place[name] for _, name in sorted(every.items())]
    assert in_order == sorted(in_order)


def test_imagenet_is_an_image_folder_with_readable_names(tmp_path):
    for wnid in ("n02012849", "n03126707", "n01440764"):
        for part in ("train", "val"):
            for k in range(2):
                save(tmp_path / part / wnid / f"{k}.JPEG", wnid)
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    )
    data = data_module.load("imagefolder", tmp_path, 16, CPU)
    assert data.class_names == ["tench", "crane (n02012849)", "crane (n03126707)"]


def test_wrong_image_folders_are_named(tmp_path, tree):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        data_module.load("imagefolder", tmp_path / "nowhere", 16, CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="needs `train` and `test` folders"):
        data_module.load("imagefolder", tmp_path / "empty", 16, CPU)
    (tree / "test" / "warm").rename(tree / "test" / "hot")
    with pytest.raises(ValueError, match="different classes, for example hot, warm"):
        data_module.load("imagefolder", tree, 16, CPU)


def test_val_will_do_for_test(tree):
    (tree / "test").rename(tree / "val")
    assert len(data_module.load("imagefolder", tree, 16, CPU).test_images) == 24
    (tree / "test").mkdir()  # without labels, as ImageNet has it
    assert len(data_module.load("imagefolder", tree, 16, CPU).test_images) == 24


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_from_the_files_of_its_archive(tmp_path, monkeypatch, dataset):
    from torchvision import datasets

    kind = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
    classes = 10 if dataset == "cifar10" else 100
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    names = [f"class {c}" for c in range(classes)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    key = "labels" if dataset == "cifar10" else "fine_labels"
    rng = np.random.default_rng(0)
    for file, _ in kind.train_list + kind.test_list:
        pixels = rng.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
        batch = {"data": pixels, key: [*range(classes)] * 2}
        (folder / file).write_bytes(pickle.dumps(batch))
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)  # knows the real files only
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = data_module.load(dataset, tmp_path, 32, CPU)
    assert data.class_names == names
    assert torch.bincount(data.test_labels).tolist() == [2] * classes
    # The last file read is the test batch: rows, then columns, for each channel.
    assert torch.equal(data.test_images[-1].flatten(), torch.from_numpy(pixels[-1]))


def test_a_misspelt_folder_is_not_left_behind(tmp_path, monkeypatch):
    def unreachable(self):
        Path(self.root).mkdir(parents=True, exist_ok=True)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", unreachable)
    with pytest.raises(ConnectionError, match="--dataset cifar10 is neither below"):
        data_module.load("cifar10", tmp_path / "misspelt", 32, CPU)
    assert not (tmp_path / "misspelt").exists()
    with pytest.raises(ConnectionError):
        data_module.load("cifar10", tmp_path, 32, CPU)
    assert tmp_path.exists()


def test_cifar_from_a_folder_of_images(tree):
    data = data_module.load("cifar10", tree, 32, CPU)
    assert data.name == "cifar10"
    assert data.class_names == ["cold", "warm"]
    assert data.size == 32


# Files


def one_image(tmp_path, image, size=8, **options):
    path = tmp_path / f"image.{options.pop('ext', 'png')}"
    image.save(path, **options)
    pixels, grey = imagefolder.decode(path, size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    return pixels[:, size // 2, size // 2].tolist(), grey


def test_kinds_of_images(tmp_path):
    rgb = Image.new("RGB", (20, 16), (200, 100, 50))
    grey = Image.new("L", (20, 16), 77)
    deep = Image.fromarray(np.full((16, 20), 77 * 257, dtype=np.uint16))
    clear = Image.new("RGBA", (20, 16), (200, 100, 50, 0))
    clear_palette = Image.new("P", (20, 16), 1)
    clear_palette.putpalette([0, 0, 0, 200, 100, 50])
    assert one_image(tmp_path, rgb) == ([200, 100, 50], False)
    assert one_image(tmp_path, rgb.quantize(2)) == ([200, 100, 50], False)
    assert one_image(tmp_path, grey) == ([77] * 3, True)
    assert one_image(tmp_path, grey.convert("1", dither=Image.Dither.NONE)) == ([0] * 3, True)
    assert one_image(tmp_path, deep) == ([77] * 3, True)
    assert one_image(tmp_path, clear) == ([255] * 3, False)  # white, as on a page
    assert one_image(tmp_path, clear_palette, transparency=b"\xff\x00") == ([255] * 3, False)
    pixels, _ = one_image(tmp_path, rgb.convert("CMYK"), ext="jpg", quality=95)
    assert np.abs(np.array(pixels) - [200, 100, 50]).max() <= 4
    pixels, _ = one_image(tmp_path, rgb.resize((500, 400)), ext="jpg", quality=95)
    assert np.abs(np.array(pixels) - [200, 100, 50]).max() <= 4


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (40, 7)])
def test_odd_sizes_give_the_central_square(tmp_path, shape):
    height, width = shape
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels, _ = imagefolder.decode(tmp_path / "ramp.png", 16)
    assert pixels.shape == (3, 16, 16)
    if width > height:  # columns on both sides are cut off
        assert abs(pixels[0].mean() - 127.5) < 10
        assert np.ptp(pixels[0]) < 30


def test_a_large_jpeg_is_what_it_is_without_shortcuts(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    large = small.resize((800, 600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    pixels, _ = imagefolder.decode(tmp_path / "large.jpg", 32)
    with Image.open(tmp_path / "large.jpg") as image:
        whole = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR, (100, 0, 700, 600))
    difference = np.abs(pixels.astype(int) - np.asarray(whole).transpose(2, 0, 1))
    assert difference.max() <= 12
    assert difference.mean() < 2


def test_grey_folders_have_one_channel(tmp_path):
    for part in ("train", "test"):
        for c in ("a", "b"):
            for k in range(3):
                path = tmp_path / part / c / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (16, 16), 40 * k + 10).save(path)
    data = data_module.load("imagefolder", tmp_path, 16, CPU)
    assert data.channels == 1
    assert data.train_images.shape[1:] == (1, 16, 16)
    assert data.test_images[:, 0, 0, 0].tolist() == [10, 50, 90] * 2
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "test" / "b" / "2.png")
    assert data_module.load("imagefolder", tmp_path, 16, CPU).channels == 3


def test_a_class_without_a_readable_image_is_named(tree):
    for file in (tree / "test" / "warm").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"class warm has no readable test image(.|\n)*0\.jpg"):
        data_module.load("imagefolder", tree, 16, CPU)


# The cache of decoded images


def stored(pattern="*.npy"):
    return list((cache.folder() / "images").glob(pattern))


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "sum", "meta", "empty"])
def test_a_damaged_cache_is_named_and_made_again(tree, capsys, damage):
    data = data_module.load("imagefolder", tree, 16, CPU)
    (file,) = stored()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "header":
        file.write_bytes(b"x" + content[1:])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "sum":
        file.with_suffix(".sum").write_text("0" * 32)
    else:
        (file,) = stored("*.json")
        file.write_bytes(file.read_bytes()[:-3])
    capsys.readouterr()
    again = data_module.load("imagefolder", tree, 16, CPU)
    assert f"{file} is damaged" in capsys.readouterr().err
    assert torch.equal(again.train_images, data.train_images)
    assert torch.equal(again.test_images, data.test_images)
    assert again.skipped == data.skipped
    data_module.load("imagefolder", tree, 16, CPU)
    assert capsys.readouterr().err == ""


def test_an_outdated_cache_is_not_used(tree):
    assert len(data_module.load("imagefolder", tree, 16, CPU).skipped) == 1
    (tree / "train" / "warm" / "broken.jpg").unlink()
    assert data_module.load("imagefolder", tree, 16, CPU).skipped == []


def test_a_cache_that_cannot_be_written_is_done_without(tree, tmp_path, capsys, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    first = data_module.load("imagefolder", tree, 16, CPU)
    assert len(first.test_images) == 24
    assert "decoded images are not kept" in capsys.readouterr().err
    (tmp_path / "cache").unlink()

    def full(path, rows, *_):
        next(iter(rows))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_rows", full)
    again = data_module.load("imagefolder", tree, 16, CPU)
    assert torch.equal(again.train_images, first.train_images)
    assert again.skipped == first.skipped
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor, mode):
        os.close(descriptor)
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(cache.os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        cache.write_rows("images/x", [np.zeros((4000, 3), np.uint8)], 4000, (3,))
    assert list((cache.folder() / "images").iterdir()) == []


def test_the_cache_can_be_left_out(tree):
    data = data_module.load("imagefolder", tree, 16, CPU, use_cache=False)
    assert not cache.folder().exists()
    assert torch.equal(data.test_images, data_module.load("imagefolder", tree, 16, CPU).test_images)


def test_two_processes_at_the_same_time_do_no_harm(tree, tmp_path):
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from distillation import imagefolder, layouts
d = imagefolder.read(layouts.find("imagefolder", Path({str(tree)!r})), 16)
print(int(d.images.sum()), len(d.skipped))
"""
    start = [sys.executable, "-c", script]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    alone = imagefolder.read(layouts.find("imagefolder", tree), 16, use_cache=False)
    assert printed == [f"{int(alone.images.sum())} 1\n"] * 2
    assert len(stored()) == 1
    assert stored(".*") == []


def test_rows_are_as_many_as_were_written():
    pieces = [np.full((n, 2, 3), n, dtype=np.uint8) for n in (1, 4, 2)]
    assert cache.write_rows("images/x", pieces, 10_000, (2, 3)) == 7
    rows = cache.read_rows("images/x")
    assert rows.shape == (7, 2, 3)
    assert np.array_equal(rows, np.concatenate(pieces))
    assert isinstance(rows, np.memmap)


def test_what_a_killed_process_left_is_removed_in_time():
    cache.write("a", b"1")
    left = cache.folder() / ".a.xyz.tmp"
    left.write_bytes(b"half")
    cache.write("a", b"2")
    assert left.exists()  # may still be written to
    os.utime(left, (0, 0))
    cache.write("a", b"3")
    assert not left.exists()
    assert cache.read("a") == b"3"
