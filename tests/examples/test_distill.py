"""The whole job at a tiny size."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import distill_cifar
import pytest
import safetensors.torch
import torch
from distillation import evaluation, report
from distillation.wording import markdown

ROOT = Path(__file__).parents[2]
TINY = [
    *("--iterations", "6", "--width", "8", "--zoo-size", "2", "--zoo-epochs", "1"),
    *("--batch-real", "16", "--num-frequencies", "64", "--eval-epochs", "5", "--eval-runs", "2"),
    *("--device", "cpu"),
]


def run(folder, *arguments):
    return distill_cifar.main([*TINY, "--output-dir", str(folder), *arguments])


def stored(folder):
    return report.load_distilled(folder / "distilled.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ncfm"
    return folder, run(folder)


def test_a_run_writes_everything(finished):
    folder, returned = finished
    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["method"] == "ncfm"
    assert results["dataset"] == "digits"
    assert results["ipc"] == 1
    assert results["seed"] == 0
    assert len(results["accuracy"]["runs"]) == 2
    mean = sum(results["accuracy"]["runs"]) / 2
    assert results["accuracy"]["mean"] == pytest.approx(mean)
    assert results["accuracy"]["std"] >= 0
    assert results["accuracy"]["best_epoch_mean"] >= mean
    assert set(results["timing"]) == {
        "pretrain_seconds",
        "distill_seconds",
        "seconds_per_iteration",
        "evaluate_seconds",
    }
    assert results["peak_memory_bytes"] > 1e7
    assert results["config"]["iterations"] == 6
    assert {"random", "mix"} == set(results["baselines"])
    assert {"torch", "ncfd"} <= set(results["versions"])
    assert results["device"].startswith("cpu")
    assert results["networks"] == "PyTorch's layers: the maps are small"
    for part in ("real", "initial", "distilled"):
        assert (folder / "images" / f"{part}.png").stat().st_size > 1000
    for plot in ("losses", "players", "gradients", "scale", "noise_floor", "accuracy"):
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 1000
    assert list((folder / "tensorboard").glob("events.*"))
    assert (folder / "checkpoint.pt").exists()
    page = (folder / "report.md").read_text()
    assert "last epoch" in page
    assert "images/distilled.png" in page
    assert "Frequency report: " in page
    assert all(line in page for line in results["warnings"])


def test_bfloat16_products_run_to_the_end(finished, tmp_path):
    results = run(tmp_path / "amp", "--amp", "--no-baselines")
    assert results["config"]["amp"]
    # Of a zoo of its own, kept apart in the cache.
    assert results["zoo_members_from_cache"] == 0
    assert not torch.equal(stored(tmp_path / "amp")[0], stored(finished[0])[0])


def test_the_loader_gives_images_to_train_on(finished, digits):
    folder, _ = finished
    images, labels, info = stored(folder)
    assert images.shape == (40, 1, 16, 16)
    assert torch.bincount(labels).tolist() == [4] * 10
    assert info["class_names"] == [str(c) for c in range(10)]
    assert (info["factor"], info["method"], info["dataset"]) == (2, "ncfm", "digits")
    # Normalised like the data the networks are tested on.
    raw = images * digits.std + digits.mean
    assert raw.min() > -1e-5
    assert raw.max() < 1 + 1e-5


def test_both_players_move(finished):
    folder, _ = finished
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    series = state["history"]
    assert all(v > 0 for v in series["gradient/images"][1])
    assert all(v > 0 for v in series["gradient/sampler"][1])
    assert series["probe/images"][1][-1] < series["probe/images"][1][0]
    assert series["probe/sampler"][1][-1] > series["probe/sampler"][1][0]
    assert len(series["loss/matching"][0]) == 6


def test_the_same_seed_gives_the_same_images_and_another_other_ones(finished, tmp_path):
    folder, results = finished
    again = run(tmp_path / "again", "--no-baselines")
    assert torch.equal(stored(tmp_path / "again")[0], stored(folder)[0])
    assert again["accuracy"]["runs"] == results["accuracy"]["runs"]
    run(tmp_path / "other", "--seed", "1", "--no-baselines", "--eval-runs", "1")
    assert not torch.equal(stored(tmp_path / "other")[0], stored(folder)[0])


def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path):
    folder, results = finished
    target = tmp_path / "killed"
    # A real kill, without a chance to tidy up, right after the checkpoint of iteration 3.
    script = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "examples")!r}]
import distill_cifar
from distillation import checkpoint
save = checkpoint.Checkpoints.save
def save_then_die(self, state):
    save(self, state)
    if state["iteration"] == 3:
        os.kill(os.getpid(), 9)
checkpoint.Checkpoints.save = save_then_die
distill_cifar.main(sys.argv[1:])
"""
    arguments = [*TINY, "--output-dir", str(target)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True
    )
    assert ended.returncode == -9, ended.stderr.decode()
    assert torch.load(target / "checkpoint.pt", weights_only=True)["iteration"] == 3

    with pytest.raises(ValueError, match="unfinished run of these options; give --resume"):
        run(target)
    with pytest.raises(ValueError, match=r"other options \(alpha 0\.5 there, 0\.3 here"):
        run(target, "--resume", "--alpha", "0.3")
    resumed = run(target, "--resume")
    assert torch.equal(stored(target)[0], stored(folder)[0])
    assert resumed["accuracy"] == results["accuracy"]


def test_resuming_a_finished_run_repeats_nothing(finished, tmp_path, monkeypatch):
    folder, results = finished
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    monkeypatch.setattr(distill_cifar, "train_zoo", None)
    monkeypatch.setattr(evaluation.training, "train", None)
    again = run(target, "--resume")
    assert again["accuracy"] == results["accuracy"]


def test_a_resumed_run_does_not_claim_the_time_of_what_it_took_over(finished, tmp_path):
    folder, results = finished
    assert not results["resumed"]
    assert "--resume" not in (folder / "report.md").read_text()
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    assert run(target, "--resume")["resumed"]
    page = (target / "report.md").read_text()
    assert "| zoo, the part after --resume |" in page
    assert "| evaluation, the part after --resume |" in page


def test_a_run_that_ended_before_it_made_anything_holds_no_folder(tmp_path, capsys):
    short = ("--method", "mix", "--no-baselines", "--eval-runs", "1")
    wrong = ("--dataset", "imagefolder", "--image-size", "16", "--data-dir", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(tmp_path / "x", *short, *wrong)
    assert (tmp_path / "x" / "config.json").exists()
    assert run(tmp_path / "x", *short)["dataset"] == "digits"
    capsys.readouterr()
    run(tmp_path / "y", *short, "--resume")
    assert "note: no run to resume in" in capsys.readouterr().err


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        run(tmp_path, "--overwrite")
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.parametrize("method", ["ncfm-fixed", "ncfm-exact", "mmd", "dm", "mix", "random"])
def test_every_method_runs_the_same_recipe(method, finished, tmp_path):
    folder, _ = finished
    short = ("--method", method, "--no-baselines", "--eval-runs", "1", "--iterations", "3")
    zoo = ("--zoo", str(folder / "zoo.pt"))
    results = run(tmp_path / method, *short, *zoo)
    assert results["method"] == method
    images, labels, info = stored(tmp_path / method)
    assert info["factor"] == (1 if method == "random" else 2)
    assert len(images) == len(labels) == (10 if method == "random" else 40)


def test_soft_labels_and_fine_tuning_stand_beside_the_headline(finished, tmp_path):
    folder, results = finished
    zoo = ("--zoo", str(folder / "zoo.pt"), "--no-baselines")
    refined = run(tmp_path / "x", *zoo, "--soft-labels", "--fine-tune")
    assert refined["accuracy"] == results["accuracy"]
    assert set(refined["refined"]) == {"soft-labels", "fine-tuned"}
    assert refined["refined"]["soft-labels"]["runs"] != results["accuracy"]["runs"]
    assert torch.equal(stored(tmp_path / "x")[0], stored(folder)[0])
    tensors = safetensors.torch.load_file(tmp_path / "x" / "distilled.safetensors")
    assert tensors["soft_labels"].shape == (40, 10)
    tuned, _, _ = report.load_distilled(tmp_path / "x" / "distilled-fine-tuned.safetensors")
    assert tuned.shape == stored(folder)[0].shape
    assert "fine-tuned, not the headline" in (tmp_path / "x" / "report.md").read_text()


def test_a_zoo_of_another_network_is_refused(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(ValueError, match="holds a zoo for width 8; this run needs width 4"):
        run(tmp_path / "x", "--zoo", str(folder / "zoo.pt"), "--width", "4")


@pytest.mark.parametrize("wrong", ["checkpoint.pt", "results.json", "images", "nothing.pt"])
def test_a_zoo_that_is_none_names_the_option(wrong, finished, tmp_path):
    file = str(finished[0] / wrong)
    with pytest.raises(ValueError, match=r"--zoo .*cannot be used") as caught:
        run(tmp_path / "x", "--zoo", file)
    assert "delete it" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(finished, tmp_path, monkeypatch):
    folder, _ = finished
    make = distill_cifar.matching.make_criterion

    def poisoned(config, sampler):
        criterion = make(config, sampler)
        calls = []

        def spoil(module, inputs, output):
            if output.requires_grad:
                calls.append(1)
                if len(calls) == 5:
                    return output + torch.tensor([0.0] * 7 + [float("nan")] + [0.0] * 2)[:, None]
            return output

        criterion.register_forward_hook(spoil)
        return criterion

    monkeypatch.setattr(distill_cifar.matching, "make_criterion", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"iteration 4: the loss of class 7 is nan.*last good state"
    ):
        run(tmp_path / "nan", "--zoo", str(folder / "zoo.pt"))
    good = torch.load(tmp_path / "nan" / "checkpoint.pt", weights_only=True)
    assert good["iteration"] == 4
    assert good["images"].isfinite().all()


def test_a_folder_of_images_runs_to_the_end(tree, tmp_path):
    results = run(
        tmp_path / "folder",
        *("--dataset", "imagefolder", "--data-dir", str(tree), "--ipc", "2", "--no-baselines"),
    )
    assert len(results["skipped_files"]) == 1
    page = (tmp_path / "folder" / "report.md").read_text()
    assert results["data"]["train_per_class"] == [11, 11]
    assert "Data: 22 training images of 2 classes, 11 of each, 2 held out" in page
    assert "24 test images; 16 × 16 pixels, 3 channels." in page
    assert "## Notes" not in page
    images, _, info = stored(tmp_path / "folder")
    assert images.shape == (16, 3, 16, 16)
    assert info["class_names"] == ["cold", "warm"]
    assert "broken.jpg" in (tmp_path / "folder" / "report.md").read_text()


def test_one_network_has_no_spread_and_the_reader_is_told_what_matters(tree, tmp_path, capsys):
    folder = ("--dataset", "imagefolder", "--data-dir", str(tree), "--ipc", "12")
    run(tmp_path / "x", *folder, "--method", "mix", "--alpha", "0.1", "--eval-runs", "1")
    page = (tmp_path / "x" / "report.md").read_text()
    assert "(1 network)" in page
    assert not re.search(r"± \d", page)
    notes = [
        "--alpha, --num-frequencies: no effect with --method mix",
        "fewer training images than --ipc 12, so that sets repeat them: cold (11), warm (11)",
    ]
    written = json.loads((tmp_path / "x" / "results.json").read_text())["notes"]
    shown = capsys.readouterr().err
    for note in notes:
        assert any(note in line for line in written)
        assert f"- {markdown(note)}" in page
        assert f"note: {note}" in shown


def test_a_size_beyond_all_memory_is_an_error_and_no_traceback(tmp_path, monkeypatch):
    argv = ["distill_cifar.py", "--image-size", "100000", "--output-dir", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match=r"^error: out of memory .*--image-size"):
        runpy.run_path(str(ROOT / "examples" / "distill_cifar.py"), run_name="__main__")


def test_the_script_prints_a_table_and_a_readable_error(tmp_path):
    script = [sys.executable, str(ROOT / "examples" / "distill_cifar.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [*TINY, "--output-dir", str(tmp_path / "run"), "--method", "random"]
    ended = subprocess.run(
        [*script, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert "test accuracy, last epoch (2 networks)" in ended.stdout
    assert "Warning" not in ended.stderr
    ended = subprocess.run(
        [*script, "--ipc", "-3"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == "error: --ipc must be a whole number >= 1; got -3"
