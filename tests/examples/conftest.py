import numpy as np
import pytest
import torch
from distillation import data as data_module
from PIL import Image


@pytest.fixture
def digits():
    """The digits at 16 pixels; read once, and nobody writes to the tensors."""
    return data_module.load("digits", None, 16, torch.device("cpu"))


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_others(tmp_path_factory):
    # For fixtures that outlive a test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    """Two classes, odd sizes, a grey and a palette image, one file cut off in the middle."""
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    for part in ("train", "test"):
        for c, name in enumerate(("cold", "warm")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(12):
                size = (17 + k, 16 + 2 * c)
                pixels = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
                pixels[..., 0 if c else 2] += 120
                image = Image.fromarray(pixels)
                if k == 3:
                    image = image.convert("L")
                if k == 5:
                    image = image.convert("P")
                image.save(folder / f"{k}.{'png' if k % 2 else 'jpg'}")
    whole = (root / "train" / "warm" / "0.jpg").read_bytes()
    (root / "train" / "warm" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "warm" / "notes.txt").write_text("not an image")
    return root
