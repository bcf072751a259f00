"""Depths, turns, kinds and names of image files; folders with links, cycles and hidden parts."""

import os

import numpy as np
import pytest
import torch
from distillation import data as data_module
from distillation import imagefolder, layouts
from PIL import Image

CPU = torch.device("cpu")


def centre(path, size=8):
    """The value of a plain grey image, and whether it counts as grey."""
    pixels, grey = imagefolder.decode(path, size)
    assert np.ptp(pixels) == 0
    return int(pixels[0, 0, 0]), grey


def plain(value, dtype, shape=(12, 12)):
    return Image.fromarray(np.full(shape, value, dtype=dtype))


# Depth: white is a matter of the format


@pytest.mark.parametrize("value", [0, 1, 128, 255, 256, 4095, 30000, 65535])
@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "jp2"])
def test_16_bits_have_white_at_65535_whatever_they_hold(tmp_path, kind, value):
    path = tmp_path / f"x.{kind}"
    plain(value, np.uint16).save(path)
    assert centre(path) == (round(value / 257), True)


@pytest.mark.parametrize(("value", "said"), [(1000, True), (4095, True), (40000, False)])
def test_dark_images_are_said_to_be(tmp_path, capsys, value, said):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                plain(value, np.uint16).save(tmp_path / part / name / f"{k}.png")
    found = imagefolder.read(layouts.find("imagefolder", tmp_path), 8, use_cache=False)
    assert found.images.max() == round(value / 257)
    message = f"no value above {round(value / 257)} of 255"
    assert (message in capsys.readouterr().err) == said


@pytest.mark.parametrize("white", [1023, 4095, 16383])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_largest_value_that_a_file_names_is_white(tmp_path, white, share):
    value = round(share * white)
    expected = (round(255 * value / white), True)
    plain(value, np.uint16).save(tmp_path / "x.tif", tiffinfo={281: white})
    assert centre(tmp_path / "x.tif") == expected
    rows = np.full((12, 12), value, dtype=">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(b"P5 12 12 %d\n" % white + rows)
    # Pillow rounds to 16 bits first.
    assert abs(centre(tmp_path / "x.pgm")[0] - expected[0]) <= 1


@pytest.mark.parametrize("value", [0.0, 0.002, 0.25, 0.5, 1.0])
def test_floating_point_has_white_at_1(tmp_path, value):
    plain(value, np.float32).save(tmp_path / "x.tif")
    assert centre(tmp_path / "x.tif") == (round(255 * float(np.float32(value))), True)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (200.0, np.float32, "values from 200 to 200; they must be from 0 to 1"),
        (-0.5, np.float32, "they must be from 0 to 1"),
        (np.nan, np.float32, "not finite"),
        (np.inf, np.float32, "not finite"),
        (77, np.int32, "do not say what white is"),
    ],
)
def test_what_has_no_rule_is_left_out_by_name(tmp_path, value, dtype, message):
    root = classes(tmp_path)
    plain(value, dtype).save(root / "train" / "a" / "odd.tif")
    (skipped,) = data_module.load("imagefolder", root, 16, CPU).skipped
    assert skipped.startswith("train/a/odd.tif (")
    assert message in skipped


def test_white_that_is_zero(tmp_path):
    plain(65535, np.uint16).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as image:
        assert image.tag_v2[262] == 0
    assert centre(tmp_path / "x.tif") == (0, True)


# Turns


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_the_camera_notes_which_side_is_up(tmp_path, orientation, kind):
    pixels = np.zeros((64, 128), dtype=np.uint8)
    pixels[:32, :64] = 250  # a bright quarter
    pixels[32:, 64:] = 120
    options = {"quality": 95} if kind in ("jpg", "webp") else {}
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).convert("RGB").save(tmp_path / f"x.{kind}", exif=exif, **options)
    found, _ = imagefolder.decode(tmp_path / f"x.{kind}", 16)
    upright = {  # as the standard of EXIF has it: where row 0 and column 0 are
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x.T[:, ::-1],
        7: lambda x: x.T[::-1, ::-1],
        8: lambda x: x.T[::-1],
    }[orientation](pixels)
    height, width = upright.shape
    top, left = (height - 64) // 2, (width - 64) // 2
    square = upright[top : top + 64, left : left + 64]
    expected = square.reshape(16, 4, 16, 4).mean((1, 3))
    assert np.abs(found[0] - expected).mean() < 6


# Kinds and names


def classes(tmp_path, count=4):
    root = tmp_path / "data"
    for part in ("train", "test"):
        for c, name in enumerate("ab"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (16, 16), (200 * c, 20 * k, 9)).save(folder / f"{k}.png")
    return root


def counts(root):
    data = data_module.load("imagefolder", root, 16, CPU)
    labels = torch.cat([data.train_labels, data.validation_labels])
    return torch.bincount(labels, minlength=2).tolist(), data.skipped


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("x.jfif", "JPEG"), ("x.JPE", "JPEG"), ("x.jp2", "JPEG2000"), ("x.j2k", "JPEG2000")],
        *[("x", "PNG"), ("x.0001", "JPEG"), ("x.png.bak", "PNG"), ("x.dib", "BMP")],
        *[("wrong.jpg", "WEBP"), ("x.pbm", "PPM"), ("x.apng", "PNG"), ("x.avif", "AVIF")],
    ],
)
def test_an_image_is_read_whatever_its_name(tmp_path, name, kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"Pillow has no {kind} here")
    root = classes(tmp_path)
    Image.new("RGB", (16, 16), (9, 99, 9)).save(root / "train" / "a" / name, format=kind)
    assert counts(root) == ([5, 4], [])


@pytest.mark.parametrize("name", ["x.mp4", "x.eps", "x.heic", "noname", "x.zip", "x.npy"])
def test_what_is_not_read_is_named(tmp_path, name):
    root = classes(tmp_path)
    (root / "train" / "a" / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (root / "train" / name).write_bytes(b"?")
    found, skipped = counts(root)
    assert found == [4, 4]
    assert skipped == [
        f"train/a/{name} (no image of a kind that is read)",
        f"train/{name} (in no class folder)",
    ]


def test_grey_palettes_are_grey(tmp_path):
    grey = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(15, 16) // 16 * 16)
    grey.quantize(8).save(tmp_path / "grey.gif")
    colour = Image.new("RGB", (16, 16), (200, 100, 50)).quantize(4)
    colour.save(tmp_path / "colour.gif")
    with Image.open(tmp_path / "grey.gif") as image:
        assert image.mode == "P"
    assert imagefolder.decode(tmp_path / "grey.gif", 8)[1]
    assert not imagefolder.decode(tmp_path / "colour.gif", 8)[1]


# Folders


@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("all", "..", "around the classes"),
        ("all", "../..", "around the classes"),
        ("self", ".", "read already"),
        ("other", "../b", "another class"),
        ("other", "../b/inner", "another class"),
        ("gone", "../nowhere", "link to nothing"),
        ("deep/up", "..", "read already"),
    ],
)
def test_links_bring_no_cycle_and_no_other_class(tmp_path, link, target, reason):
    root = classes(tmp_path)
    (root / "train" / "b" / "inner").mkdir()
    (root / "train" / "a" / "deep").mkdir()
    (root / "train" / "a" / link).symlink_to(target)
    found, (skipped,) = counts(root)
    assert found == [4, 4]
    assert skipped.startswith(f"train/a/{link} (")
    assert reason in skipped


def test_links_to_elsewhere_are_followed_once(tmp_path):
    root = classes(tmp_path)
    pool = tmp_path / "pool"
    pool.mkdir()
    Image.new("RGB", (16, 16)).save(pool / "x.png")
    (pool / "round").symlink_to(".")
    (root / "train" / "a" / "more").symlink_to(pool)
    (root / "train" / "b" / "more").symlink_to(pool)
    (root / "train" / "b" / "again").symlink_to(pool)
    found, skipped = counts(root)
    assert found == [5, 5]
    assert len(skipped) == 3
    # A class folder may itself be a link.
    (root / "train" / "a").rename(tmp_path / "a")
    (root / "train" / "a").symlink_to(tmp_path / "a")
    assert counts(root)[0] == [5, 5]


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", ".thumbnails", ".Trash-1000", ".git", "__MACOSX", "@eaDir"),
        *("$RECYCLE.BIN", "lost+found"),
    ],
)
@pytest.mark.parametrize("where", ["train/a", "train/a/inner", "train"])
def test_nothing_hidden_is_data(tmp_path, name, where):
    root = classes(tmp_path)
    hidden = root / where / name
    hidden.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(hidden / "x.png")
    for file in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (root / where / file).write_bytes(b"?")
    assert counts(root) == ([4, 4], [])


def test_a_pipe_is_not_waited_for(tmp_path):
    root = classes(tmp_path)
    os.mkfifo(root / "train" / "a" / "pipe.png")
    found, (skipped,) = counts(root)
    assert found == [4, 4]
    assert skipped == "train/a/pipe.png (no ordinary file)"


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_that_is_too_small_is_called_by_its_folder(tmp_path, left):
    root = classes(tmp_path)
    (root / "words.txt").write_text("n02124075\tEgyptian cat\n")
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "n02124075")
    for path in sorted((root / "train" / "n02124075").iterdir())[left:]:
        path.unlink()
    assert layouts.find("imagefolder", root).class_names == ["a", "Egyptian cat"]
    with pytest.raises(ValueError, match="class n02124075 has"):
        data_module.load("imagefolder", root, 16, CPU)
