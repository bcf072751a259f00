"""The studies: their arithmetic by hand, and one of them for real at a tiny size."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from studies import plots, projection, questions, run, runner, tables
from studies.questions import STUDIES, Row, Study

ROOT = Path(__file__).parents[2]
TINY = Study("tiny", "?", (), (Row("a"), Row("b"), Row("c")), reference="a")
BASE = ["--dataset", "digits", "--device", "cpu"]


def made(row, seed, accuracies, zoo=(50.0,), **more):
    """A run as a study keeps it."""
    return {
        "row": row,
        "seed": seed,
        "accuracy": {"runs": list(accuracies)},
        "zoo_validation_accuracies": list(zoo),
        "warnings": [],
        "config": {"ipc": 4, "factor": 2, "zoo_size": 3, "zoo_epochs": 2},
        "history": {},
        **more,
    }


# --- tables --------------------------------------------------------------------------------------


def test_a_table_by_hand():
    records = [
        made("a", 0, [40, 42]),
        made("a", 1, [44, 44]),
        made("b", 1, [45, 47]),  # 46: 2 above
        made("b", 0, [40, 41]),  # 40.5: 0.5 below
        made("c", 1, [44, 44]),
    ]
    head, a, b, c = tables.table(TINY, records)
    assert head[1] == "accuracy, %: seeds 0, 1"
    assert head[3] == "minus `a`: seeds 0, 1"
    # 41 and 44: deviations of 1.5 from 42.5, so √(2 · 1.5²) = 2.12.
    assert a == ["`a`", "41.0, 44.0", "42.5 ± 2.1", "reference", ""]
    # Means 40.5 and 46, √(2 · 2.75²) = 3.89; differences -0.5 and +2, √(2 · 1.25²) = 1.77.
    assert b == ["`b`", "40.5, 46.0", "43.2 ± 3.9", "-0.5, +2.0", "+0.8 ± 1.8"]
    # One seed: no spread. 0, without a sign.
    assert c == ["`c`", "44.0", "44.0", "0.0", "0.0"]


def test_differences_are_taken_within_a_seed():
    records = [made("a", 0, [10]), made("a", 1, [30]), made("b", 1, [31]), made("b", 2, [99])]
    assert tables.differences(records, "b", "a") == {1: 1}
    assert tables.differences(records, "c", "a") == {}


def test_rows_without_runs_are_left_out():
    assert [line[0] for line in tables.table(TINY, [made("b", 0, [1])])] == ["row", "`b`"]
    (_, b) = tables.table(TINY, [made("b", 0, [1])])
    assert b[3:] == ["-", "-"]  # nothing to compare with


def test_the_columns_of_the_players():
    study = Study("p", "?", (), (Row("a"),), reference="a", players=True)
    curves = {"scale/mean": [[0, 9], [3.0, 5.0]], "phi/median": [[0, 9], [0.5, 0.25]]}
    first = made("a", 0, [1], history=curves, warnings=["x", "y"])
    second = made("a", 1, [1], history={**curves, "scale/mean": [[9], [6.0]]})
    *_, scale, phi, noise, warnings = tables.table(study, [first, second])[1]
    # 4 stored images of 2 x 2: 16, whose noise is 1/4.
    assert (scale, phi, noise, warnings) == ("5.50", "0.250", "0.250", "1.0")
    text = tables.page(study, [first, second], "command", [])
    assert "- `a`, seed 0: y" in text
    assert "- `a`, seed 1: no warnings" in text
    *_, scale, phi, _, _ = tables.table(study, [made("a", 0, [1])])[1]
    assert (scale, phi) == ("-", "-")


def test_unlike_zoos_are_named():
    same = [made("a", 0, [1]), made("b", 0, [1]), made("a", 1, [1], zoo=[51]), made("c", 1, [1])]
    assert tables.different_zoos(same) == [1]
    assert "seed 1 do not share one zoo" in tables.page(TINY, same, "command", [])
    without = [made("a", 0, [1]), made("b", 0, [1], zoo=[])]  # `mix` needs none
    assert tables.different_zoos(without) == []
    longer = {**same[0]["config"], "zoo_epochs": 12}
    asked = [made("a", 0, [1]), made("b", 0, [1], zoo=[51], config=longer)]
    assert tables.different_zoos(asked) == []
    assert "do not share" not in tables.page(TINY, without, "command", [])


def test_curves_are_thinned_to_means():
    assert runner.thinned([], []) == [[], []]
    assert runner.thinned([0, 3], [1.0, 2.0]) == [[0, 3], [1, 2]]
    steps, values = runner.thinned(range(100), range(100))
    assert len(steps) == len(values) == runner.POINTS
    assert sum(values) / len(values) == pytest.approx(49.5, abs=0.5)  # stretches of 2 and of 3
    assert (steps[0], values[0]) == (0, 0.5)  # iterations 0 and 1


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_rows_are_different_runs_of_one_protocol(study, quick, tmp_path):
    protocol = questions.QUICK if quick else study.protocol
    planned = run.plans(study, 3, [*BASE, *protocol], [], tmp_path)
    assert [*planned] == [row.name for row in study.rows]
    assert study.reference in planned
    folders = {p.folder for p in planned.values()}
    assert len(folders) == len(study.rows)
    # What the rows' options name, and what follows from the method, and nothing else.
    differing = {
        key
        for p in planned.values()
        for key, value in p.config.items()
        if value != planned[study.reference].config[key]
    }
    named = {w[2:].replace("-", "_") for row in study.rows for w in row.options if w[:2] == "--"}
    assert differing <= named | {"sampler", "loss"}
    shared = {p.config["zoo_size"] for p in planned.values()}
    assert len(shared) == 1


def test_the_same_options_are_the_same_run(tmp_path):
    base = [*BASE, *questions.PROTOCOL]
    found = {
        name: run.plans(STUDIES[name], 0, base, [], tmp_path)[row].folder
        for name, row in (
            ("alpha", "α = 0.5"),
            ("frequencies", "1024, random"),
            ("extractor", "hybrid"),
            ("sampler", "fixed normal"),
            ("loss", "squared"),
        )
    }
    assert len(set(found.values())) == 1
    other = run.plans(STUDIES["alpha"], 1, base, [], tmp_path)["α = 0.5"]
    assert other.folder not in found.values()
    # An option of the future, at its default, changes neither the name nor the comparison.
    config = other.config
    assert "scores" in runner.telling({**config, "scores": True})
    assert runner.telling({k: v for k, v in config.items() if k != "layers"}) == (
        runner.telling(config)
    )


def test_options_pass_through_but_a_row_wins(tmp_path):
    passed = ["--num-frequencies", "32", "--scale", "2"]
    planned = run.plans(STUDIES["frequencies"], 0, [*BASE, *questions.QUICK], passed, tmp_path)
    assert {p.config["scale"] for p in planned.values()} == {2.0}
    assert planned["64, random"].config["num_frequencies"] == 64


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--study", "beta"], "--study must be among psi, alpha, .*; got 'beta'"),
        (["--study", " "], "--study must be among"),
        ([], "--study must be among .*, or all; got none"),
        (["--study", "loss", "--rows", "root;cube"], "--rows must be among .*; got 'cube'"),
        (["--study", "loss,alpha", "--rows", "root"], "--rows needs a single --study"),
        (["--study", "loss", "--seeds", "0,x"], "--seeds must be whole numbers >= 0.*'0,x'"),
        (["--study", "loss", "--seeds", "-1"], "--seeds must be whole numbers"),
        (["--study", "loss", "--", "--scale", "0"], "--scale must be a number > 0"),
        (["--study", "loss", "--", "--output-dir", "x"], "--output-dir is the study's to choose"),
        (["--study", "loss", "--", "--resume"], "--resume is the study's to choose"),
    ],
)
def test_unknown_names_are_refused(arguments, complaint, tmp_path):
    where = ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=complaint):
        run.main([*where, *arguments])
    assert not [*tmp_path.glob("out/*")]  # before anything was run or written


def test_the_studies_are_listed(capsys):
    assert run.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*STUDIES, "projection"]
    assert all(line.endswith("?") for line in lines)


def test_numbers_are_kept_on_one_line_and_unchanged(tmp_path):
    content = {"a": [1.5, 2], "b": [[1, 2], [3.25]], "c": ["x, y", "] z ["], "d": {"e": []}}
    run.save_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert ' "a": [1.5, 2],\n' in text


def test_a_study_does_not_lose_the_runs_of_another_command(tmp_path, capsys):
    study = STUDIES["loss"]
    base = [*BASE, *questions.PROTOCOL]
    planned = {seed: run.plans(study, seed, base, [], tmp_path) for seed in (0, 1)}
    rows = [row.name for row in study.rows]
    run.require_own(study, planned, tmp_path)  # there is nothing yet

    def keep(seed, **changes):
        config = {**planned[seed]["root"].config, "data_dir": "elsewhere", **changes}
        content = {"runs": [{"row": "root", "seed": seed, "config": config}]}
        (tmp_path / "loss.json").write_text(json.dumps(content))

    keep(1)
    run.require_own(study, planned, tmp_path)
    run.conduct(study, planned, rows, 1, tmp_path, "command", write_only=True)
    assert "study loss: 0 of 6 runs are finished" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"loss\.json holds a run .*row root, seed 1.*--output-dir"
    ):
        run.conduct(study, {0: planned[0]}, rows, 0, tmp_path, "command", write_only=True)
    keep(1, iterations=6)
    with pytest.raises(ValueError, match="would lose"):
        run.require_own(study, planned, tmp_path)


def test_a_rehearsal_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--study", "loss", "--write-only"]) == 0
    assert run.main(["--study", "loss", "--write-only", "--quick"]) == 0
    assert {p.name for p in tmp_path.glob("runs/*")} == {"studies", "studies-quick"}


def test_write_only_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "project", None)
    arguments = ["--study", "projection", "--write-only", "--output-dir", str(tmp_path / "out")]
    assert run.main(arguments) == 0
    assert "projection: left out" in capsys.readouterr().out


# --- plots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_can_be_drawn(study, tmp_path):
    steps = [0, 10, 20]
    history = {
        "scale/mean": [steps, [3.0, 4.0, 5.0]],
        "phi/median": [steps, [0.3, 0.2, 0.1]],
        "probe/sampler": [steps, [0.01, 0.02, 0.03]],
    }
    records = [
        made(row.name, seed, [40 + k + seed, 41 + k], history=history)
        for k, row in enumerate(study.rows)
        for seed in (0, 1)
    ]
    figure = plots.draw(study, records)
    figure.savefig(tmp_path / "x.svg")
    axes = figure.axes[0]
    assert "%" in axes.get_xlabel() + axes.get_ylabel()
    if study.x_label:
        # A line joins the means: 40.5 + k of seed 0, 41 + k of seed 1.
        first = next(line for line in axes.lines if len(line.get_xdata()) > 2)
        assert first.get_ydata()[:2].tolist() == [40.75, 41.75]
    # With a single run there is something to look at, too.
    plots.draw(study, records[:1]).savefig(tmp_path / "y.svg")


def test_distilled_images_side_by_side():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(3).repeat_interleave(2)
    figure = plots.grids([("a", images, labels), ("b", images, labels)], ["x", "y", "z"])
    assert isinstance(figure, matplotlib.figure.Figure)
    assert len(figure.axes) == 6
    shown = figure.axes[1].images[0].get_array()
    assert torch.equal(torch.as_tensor(shown), images[2].permute(1, 2, 0))


# --- projection ----------------------------------------------------------------------------------


def test_a_projection_by_hand():
    rows = [{"classes": C, "seconds": 0.5 + 0.25 * C, "peak_bytes": 1e9 + 3e6 * C} for C in (2, 4)]
    fitted = projection.fit(rows, replicated=1e6)
    assert fitted["seconds_per_class"] == pytest.approx(0.25)
    assert fitted["peak_bytes_fixed"] == pytest.approx(1e9)
    # 1000 classes on one process, and 125 classes each on eight.
    assert projection.seconds(fitted, 1000, 1) == pytest.approx(250.5)
    assert projection.seconds(fitted, 1000, 8) == pytest.approx(31.75)
    # 1 GB + 3 MB a class; of these 1 MB for all 1000 classes in every process, 2 MB for its own.
    assert projection.gigabytes(fitted, 1000, 1) == pytest.approx(4.0)
    assert projection.gigabytes(fitted, 1000, 8) == pytest.approx(1 + 0.25 + 1)
    content = {"measured": rows, "fit": fitted}
    cells = projection.table(content)
    assert cells[1] == ["2", "1", "1.00", "1.01", "measured"]
    assert cells[4] == ["1000", "8", "31.75", "2.25", "projected, each"]
    figure = plots.draw_projection(content)
    assert all(axes.get_xlabel() == "classes" for axes in figure.axes)


# --- for real ------------------------------------------------------------------------------------

TWO = ["--study", "psi", "--rows", "mmd;dm", "--quick", "--seeds", "0"]


def command(output, *more):
    program = ROOT / "examples" / "studies" / "run.py"
    arguments = [*TWO, "--output-dir", str(output), *more, "--", "--device", "cpu"]
    return [sys.executable, str(program), *arguments]


def test_an_interrupted_study_goes_on_and_repeats_nothing(tmp_path):
    output = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    long = ["--iterations", "120"]
    # Stopped in the second row, once that has been saved.
    with subprocess.Popen([*command(output), *long], env=environment) as process:
        deadline = time.monotonic() + 600
        while not [*output.glob("runs/dm-*/checkpoint.pt")]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 130
    (first,) = output.glob("runs/mmd-*")
    (second,) = output.glob("runs/dm-*")
    assert (first / "results.json").exists()
    assert not (second / "results.json").exists()
    page = (output / "psi.md").read_text()
    assert "| `mmd` |" in page
    assert "| `dm` |" not in page
    before = (first / "results.json").stat().st_mtime_ns

    subprocess.run([*command(output), *long], env=environment, check=True)
    assert (first / "results.json").stat().st_mtime_ns == before
    # A run that had started anew would have deleted the events of the one that was stopped.
    assert len([*second.glob("tensorboard/events.*")]) == 2
    content = json.loads((output / "psi.json").read_text())
    assert [r["row"] for r in content["runs"]] == ["mmd", "dm"]
    for kept in content["runs"]:
        (folder,) = output.glob(f"runs/{kept['config']['method']}-*")
        results = json.loads((folder / "results.json").read_text())
        assert kept["accuracy"] == results["accuracy"]
        assert kept["config"] == results["config"]
        assert all(not value.startswith("/") for value in kept["options"])
    assert len({tuple(r["zoo_validation_accuracies"]) for r in content["runs"]}) == 1
    page = (output / "psi.md").read_text()
    assert re.search(r"\| `dm` \| \d+\.\d \| \d+\.\d \| reference \|", page)
    assert "![psi](psi.svg)" in page
    assert (output / "psi.svg").stat().st_size > 1000

    # Nothing is left to do; and results that are not what the name says are not taken.
    events = [p.stat().st_mtime_ns for p in output.glob("runs/*/tensorboard/*")]
    arguments = [*command(output), *long][2:]
    assert run.main(arguments) == 0
    assert events == [p.stat().st_mtime_ns for p in output.glob("runs/*/tensorboard/*")]
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "scale": 7.0}))
    with pytest.raises(ValueError, match="holds a run with other options"):
        run.main(arguments)
