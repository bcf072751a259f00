"""A saved set, judged on its own."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import distill_cifar
import evaluate_distilled
import pytest
import safetensors.torch
import torch
from distillation import report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without distillation: what matters here is the file it leaves."""
    folder = tmp_path_factory.mktemp("run") / "mix"
    results = distill_cifar.main(
        [
            *("--method", "mix", "--width", "4", "--depth", "2", "--eval-epochs", "1"),
            *("--eval-runs", "1", "--baselines", "random", "--seed", "5", "--ipc", "2"),
            *("--device", "cpu", "--output-dir", str(folder)),
        ]
    )
    return folder / "distilled.safetensors", results


def test_the_figures_are_those_of_the_run(run, tmp_path, capsys):
    file, results = run
    output = tmp_path / "results.json"
    found = evaluate_distilled.main(
        [str(file), "--device", "cpu", "--baselines", "random", "--output", str(output)]
    )
    assert found["accuracy"] == results["accuracy"]  # the recipe, too, is in the file
    assert found["baselines"]["random"] == results["baselines"]["random"]
    assert json.loads(output.read_text()) == json.loads(json.dumps(found))
    assert found["storage_bytes"] == results["storage_bytes"] == 20 * 256
    assert found["metadata"]["method"] == "mix"
    printed = capsys.readouterr().out
    assert "test accuracy, last epoch (1 network)" in printed
    assert "5,120 bytes" in printed


def test_options_override_the_recipe_of_the_file(run, monkeypatch):
    asked = {}

    def judge(data, sets, recipe, **options):
        asked.update(vars(recipe), sets=list(sets), **options)
        raise ValueError("enough")

    monkeypatch.setattr(evaluate_distilled.comparison, "judge", judge)
    with pytest.raises(ValueError, match="enough"):
        evaluate_distilled.main(
            [
                *(str(run[0]), "--networks", "resnet18,convnet", "--epochs", "7", "--runs", "3"),
                *("--width", "6", "--seed", "0", "--scores", "--full-epochs", "2"),
            ]
        )
    recipe = (asked["epochs"], asked["runs"], asked["width"], asked["depth"], asked["seed"])
    assert recipe == (7, 3, 6, 2, 0)
    assert asked["full_epochs"] == 2
    assert asked["sets"] == ["distilled", "random", "full"]
    assert asked["networks"] == ["resnet18", "convnet"]
    assert asked["with_scores"]


def test_labels_follow_the_names_of_the_classes(run, digits):
    images, _, info = report.read_distilled(run[0])
    info["class_names"] = info["class_names"][::-1]
    data, order = evaluate_distilled.fit(digits, images, info)
    assert order.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    info["mean"] = [0.25]
    data, _ = evaluate_distilled.fit(digits, images, info)
    assert data.mean.flatten().tolist() == [0.25]
    info["class_names"] = [*info["class_names"][:9], "zebra"]
    with pytest.raises(
        ValueError, match="10 classes, the data set 10; not among the latter: zebra"
    ):
        evaluate_distilled.fit(digits, images, info)
    with pytest.raises(ValueError, match=r"3 channel\(s\), those of the data set 1"):
        evaluate_distilled.fit(digits, images.expand(-1, 3, -1, -1), info)


def test_soft_labels_stand_beside_the_headline(run, tmp_path, digits, monkeypatch):
    with pytest.raises(ValueError, match=r"--soft-labels: .* was saved without any"):
        evaluate_distilled.main([str(run[0]), "--soft-labels"])
    images, labels, info = report.read_distilled(run[0])
    soft = torch.eye(10)[labels.repeat_interleave(4)] * 0.9 + 0.01
    renamed = replace(digits, class_names=digits.class_names[::-1])
    recipe = {name: info[name] for name in ("width", "depth", "eval_epochs", "eval_runs")}
    file = tmp_path / "soft.safetensors"
    report.save_distilled(file, images, labels, renamed, factor=2, soft_labels=soft, **recipe)
    found = {}
    monkeypatch.setattr(
        evaluate_distilled.comparison,
        "judge",
        lambda data, sets, *_, **__: found.update(sets) or (_ for _ in ()).throw(KeyError),
    )
    with pytest.raises(KeyError):
        evaluate_distilled.main([str(file), "--soft-labels"])
    assert found["distilled"].soft_labels is None
    given = found["soft labels"].soft_labels
    # The classes are named the other way round there, so label and column follow.
    assert torch.equal(given.argmax(1), found["distilled"].labels.repeat_interleave(4))
    assert torch.equal(found["distilled"].labels, 9 - labels)


def test_what_is_no_distilled_set_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluate_distilled.main([str(tmp_path / "nowhere.safetensors")])
    (tmp_path / "cut.safetensors").write_bytes(run[0].read_bytes()[:100])
    with pytest.raises(ValueError, match="is no distilled set, or damaged"):
        evaluate_distilled.main([str(tmp_path / "cut.safetensors")])
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"images": torch.zeros(1, 1, 8, 8)}, other)
    with pytest.raises(
        ValueError, match="it lacks class_names, dataset, factor, labels, mean, std"
    ):
        evaluate_distilled.main([str(other)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), r"--epochs must be a whole number >= 1; got 0"),
        (("--networks", "vit"), r"--networks must be among convnet, .*; got 'vit'"),
        (("--baselines", "dm"), r"--baselines must be among random, mix, full; got 'dm'"),
        (("--dataset", "imagewoof"), r"--dataset imagewoof needs --data-dir PATH"),
        (
            ("--depth", "9"),
            r"--depth must be at most 4, since each block halves the 16 pixels; got 9",
        ),
        # Before the networks are trained, not after.
        (("--output", "no/such/folder.json"), r"--output must be a file in a folder that exists"),
    ],
)
def test_bad_options_are_named(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_distilled.main([str(run[0]), *arguments])


def test_options_that_change_nothing_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_distilled.comparison, "judge", None)
    idle = ("--networks", "alexnet", "--width", "8", "--full-epochs", "3", "--data-dir", "x")
    with pytest.raises(TypeError):
        evaluate_distilled.main([str(run[0]), *idle])
    assert capsys.readouterr().err.splitlines() == [
        "note: --data-dir: no effect with --dataset digits",
        "note: --width: no effect without the ConvNet among --networks",
        "note: --full-epochs: no effect without the baseline `full`",
    ]
    with pytest.raises(TypeError):
        evaluate_distilled.main([str(run[0]), "--width", "8", "--depth", "1"])
    assert not capsys.readouterr().err


def test_the_script_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate_distilled.py", "nothing.safetensors"])
    with pytest.raises(SystemExit, match=r"^error: .*nothing\.safetensors"):
        runpy.run_path(str(ROOT / "examples" / "evaluate_distilled.py"), run_name="__main__")
