"""Data the example has never seen, from files to figures, without a change of code."""

import time
import zlib

import distill_cifar
import numpy as np
import pytest
from distillation import layouts, report
from PIL import Image

SHORT = [
    *("--iterations", "2", "--width", "4", "--zoo-size", "1", "--zoo-epochs", "1"),
    *("--batch-real", "3", "--num-frequencies", "16", "--eval-epochs", "1", "--eval-runs", "1"),
    *("--ipc", "1", "--no-baselines", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch):
    # Most of the time of so short a run; test_distill.py has them.
    monkeypatch.setattr(report, "save_plots", lambda *_: [])
    monkeypatch.setattr(report, "save_accuracy_plot", lambda *_: None)


def run(tmp_path, dataset, root, *arguments):
    folder = tmp_path / "run"
    where = ("--dataset", dataset, "--data-dir", str(root), "--output-dir", str(folder))
    results = distill_cifar.main([*SHORT, *where, *arguments])
    images, _, info = report.read_distilled(folder / "distilled.safetensors")
    assert results["dataset"] == info["dataset"] == dataset
    assert images.isfinite().all()
    assert results["storage_bytes"] == images.numel()
    assert 0 <= results["accuracy"]["mean"] <= 100
    return images, info, results


def save(path, size, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def image_folder(root, classes, size, images=3, mode="RGB"):
    for c in range(classes):
        for part in ("train", "test"):
            for k in range(images if part == "train" else 1):
                save(root / part / f"class {c:03}" / f"{k}.png", size, mode)
    return root


def imagenet(root, wnids, size=20, images=3):
    for wnid in wnids:
        for k in range(images):
            save(root / "train" / wnid / f"{wnid}_{k}.JPEG", size)
        save(root / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", size)
    return root


def tiny_imagenet(root, classes):
    wnids = [f"n{c:08}" for c in range(classes)]
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    lines = []
    for c, wnid in enumerate(wnids):
        for k in range(3):
            save(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 64)
        save(root / "val" / "images" / f"val_{c}.JPEG", 64)
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_grey_images(tmp_path):
    root = image_folder(tmp_path / "data", classes=3, size=21, mode="L")
    images, info, _ = run(tmp_path, "imagefolder", root)
    assert images.shape == (3, 1, 16, 16)
    assert len(info["mean"]) == 1


def test_a_hundred_classes(tmp_path):
    root = image_folder(tmp_path / "data", classes=100, size=16)
    images, info, _ = run(tmp_path, "imagefolder", root, "--num-frequencies", "4")
    assert images.shape == (100, 3, 16, 16)
    assert info["class_names"][99] == "class 099"


def test_tiny_imagenet(tmp_path):
    images, _, _ = run(tmp_path, "tinyimagenet", tiny_imagenet(tmp_path / "data", 4))
    assert images.shape == (4, 3, 64, 64)


def test_a_subset_of_imagenet(tmp_path):
    root = imagenet(tmp_path / "data", [*layouts.IMAGENET_SUBSETS["imagesquawk"], "n00000001"])
    images, info, _ = run(tmp_path, "imagesquawk", root, "--image-size", "16")
    assert images.shape == (10, 3, 16, 16)
    assert "king penguin" in info["class_names"]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", layouts.IMAGENET_SUBSETS)
def test_every_subset_at_its_own_size(tmp_path, dataset):
    root = imagenet(tmp_path / "data", layouts.IMAGENET_SUBSETS[dataset], size=150)
    images, _, results = run(tmp_path, dataset, root)
    assert images.shape == (10, 3, 128, 128)
    assert results["config"]["depth"] == 5


@pytest.mark.slow
def test_a_hundred_classes_of_128_pixels(tmp_path):
    root = image_folder(tmp_path / "data", classes=100, size=128)
    began = time.perf_counter()
    images, _, results = run(tmp_path, "imagefolder", root)
    assert images.shape == (100, 3, 128, 128)
    assert results["peak_memory_bytes"] < 8e9
    assert time.perf_counter() - began < 600


@pytest.mark.slow
def test_two_hundred_classes(tmp_path):
    images, _, _ = run(tmp_path, "tinyimagenet", tiny_imagenet(tmp_path / "data", 200))
    assert images.shape == (200, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_from_class_folders(tmp_path, dataset, classes):
    root = image_folder(tmp_path / "data", classes, size=32)
    images, _, _ = run(tmp_path, dataset, root)
    assert images.shape == (classes, 3, 32, 32)
