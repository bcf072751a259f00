"""Class folders and files with names that mathematics, Markdown, fonts or terminals trip over."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import distill_cifar
import pytest
from distillation import report, wording
from markdown import markdown as html
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "distill_cifar.py"
TINY = [
    *("--dataset", "imagefolder", "--method", "random", "--ipc", "1", "--no-baselines"),
    *("--image-size", "16", "--width", "4", "--depth", "2", "--batch-real", "4"),
    *("--eval-epochs", "1", "--eval-runs", "1", "--device", "cpu", "--no-cache"),
]
ODD = [
    "US$_^AU$",
    "$",
    r"\frac{1}",
    "<b>bold & co",
    "`tick` ```",
    "*_stars_* [x](y)",
    "line\nbreak",
    "猫",
    "ไทย",
    "# 1. heading",
    os.fsdecode(b"caf\xe9"),
    "\u202eevil",
]


def tree(root, names, images=4):
    for part in ("train", "test"):
        for c, name in enumerate(names):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(images):
                Image.new("RGB", (16, 16), (20 * c, 30 * k, 99)).save(folder / f"{k}.png")
            (folder / "not *an* image.png").write_text("x")
    return root


@pytest.mark.parametrize("name", ODD)
def test_a_run_with_an_odd_class_ends_with_everything_written(tmp_path, name, capsys):
    root = tree(tmp_path / "data", [name, "plain"])
    folder = tmp_path / "run"
    distill_cifar.main([*TINY, "--data-dir", str(root), "--output-dir", str(folder)])
    assert "warning" not in capsys.readouterr().err
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert sorted(results["data"]["class_names"]) == sorted([wording.shown(name), "plain"])
    page = (folder / "report.md").read_bytes().decode("utf-8")
    # Every fence is closed: what follows the last block is nothing but its end.
    assert html(page, extensions=["fenced_code"]).count("<pre>") == 2
    for picture in ("real", "initial", "distilled", "distilled_decoded"):
        assert (folder / "images" / f"{picture}.png").stat().st_size > 500
        assert f"images/{picture}.png" in page
    stored = report.read_distilled(folder / "distilled.safetensors")[2]
    assert sorted(stored["class_names"]) == sorted([name, "plain"])


@pytest.mark.parametrize(
    "name", [*ODD, "- dash", "12) x", "+", "~~x~~", "![i](j)", "&lt;", "a_b_c"]
)
def test_markdown_shows_the_name_itself(name):
    page = html(f"- {wording.markdown(name)}")
    text = re.sub(r"</?(ul|li)>|\n", "", page)
    assert "<" not in text  # no other tag came of it
    for entity, character in (
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#36;", "$"),
        ("&#126;", "~"),
        ("&amp;", "&"),
    ):
        text = text.replace(entity, character)
    assert text == wording.shown(name)


@pytest.mark.parametrize("text", ["", "x", "``", "a ``` b", "````\n```"])
def test_a_fence_is_longer_than_what_it_holds(text):
    first, inside, last = wording.fenced(text, "json")
    assert inside == text
    assert first == last + "json"
    assert last not in text
    assert len(last) >= 3


def test_a_class_that_the_font_lacks_has_a_number_and_the_page_its_name(tmp_path):
    root = tree(tmp_path / "data", ["plain", "ไทย", "猫"])
    folder = tmp_path / "run"
    distill_cifar.main([*TINY, "--data-dir", str(root), "--output-dir", str(folder)])
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert report.drawable("plain", 0) == "plain"
    assert report.drawable("猫", 2) == "class 2"
    assert "- 2 is 猫\n" in page
    assert "- 1 is ไทย\n" in page
    assert "- 0 is" not in page


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("save_grid", ValueError("no\nparse")),
        ("save_accuracy_plot", MemoryError()),
        ("write_page", OSError(28, "full")),
    ],
)
def test_a_picture_that_fails_costs_a_line(tmp_path, monkeypatch, capsys, broken, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(report, broken, fails)
    root = tree(tmp_path / "data", ["a", "b"])
    folder = tmp_path / "run"
    results = distill_cifar.main([*TINY, "--data-dir", str(root), "--output-dir", str(folder)])
    assert json.loads((folder / "results.json").read_text()) == results
    shown = capsys.readouterr()
    warnings = [line for line in shown.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == (4 if broken == "save_grid" else 1)
    assert (folder / "report.md").exists() == (broken != "write_page")
    assert "test accuracy" in shown.out


@pytest.mark.parametrize(
    "program",
    [
        *("distill_cifar", "evaluate_distilled", "studies/run"),
        *("detect_shift", "plug_in", "train_gan", "regularise_embeddings"),
    ],
)
def test_help_prints_on_any_terminal(program):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    script = ROOT / "examples" / f"{program}.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--help"], env=environment, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode("cp1252")
    assert b"usage" in ended.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_run_prints_on_any_terminal(tmp_path, encoding):
    root = tree(tmp_path / "data", ["猫", os.fsdecode(b"\xff\xfe")])
    where = ["--data-dir", str(root), "--output-dir", str(tmp_path / "猫 run")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, *where], env=environment, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode(encoding)
    assert b"test accuracy" in ended.stdout
    # No terminal: lines, not a bar that is rewritten.
    assert b"\r" not in ended.stdout + ended.stderr.replace(b"\r\n", b"\n")
    assert b"4 files were" in ended.stdout  # two of each class
