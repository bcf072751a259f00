"""The script for a borrowed accelerator, rehearsed on the CPU: order, interruption, what lacks."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gpu_window

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = [sys.executable, str(ROOT / "benchmarks" / "gpu_window.py")]
REHEARSAL = ["--device", "cpu", "--quick"]

#: Counts to `argv[2]` in a file, a tenth of a second each; at SIGTERM it saves and ends.
COUNTING = """
import pathlib, signal, sys, time
file, end = pathlib.Path(sys.argv[1]), int(sys.argv[2])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
count = int(file.read_text()) if file.exists() else 0
while count < end:
    count += 1
    file.write_text(str(count))
    time.sleep(0.1)
    if stop:
        sys.exit(143)
(file.parent / "results.json").write_text("{}")
"""


def ledger(folder):
    return json.loads((folder / "ledger.json").read_text())


def statuses(folder):
    return {name: entry["status"] for name, entry in ledger(folder)["stages"].items()}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A list of three stages that need no time; returns how to call the script."""
    work, out = tmp_path / "work", tmp_path / "out"
    counted = work / "counting" / "count.txt"

    def stages(args):
        python = [sys.executable, "-c"]
        fails = [*python, "print('first'); raise ValueError('no such thing')"]
        quick = [*python, "import pathlib, sys; open(sys.argv[1], 'a').write('x')"]
        counts = [*python, COUNTING, str(counted), str(args.iterations)]
        made = ("results.json", "checkpoint.pt")
        return [
            gpu_window.Stage("failing", 1, fails, "failing", made),
            gpu_window.Stage("counting", 1, counts, "counting", made, saves=True),
            gpu_window.Stage("last", 1, [*quick, str(work / "last.txt")], "last", made),
        ]

    monkeypatch.setattr(gpu_window, "stages", stages)

    def call(*arguments, seconds="60", iterations="5"):
        own = ["--work", str(work), "--out", str(out), "--iterations", iterations]
        return gpu_window.main([*REHEARSAL, *own, "--seconds", seconds, *arguments])

    return call, work, out


def test_one_failing_stage_is_recorded_and_stops_no_other(small):
    call, work, out = small
    assert call() == 1
    assert statuses(out) == {"failing": "failed", "counting": "done", "last": "done"}
    entry = ledger(out)["stages"]["failing"]
    assert entry["why"] == "status 1: ValueError: no such thing"
    assert "first" in (out / "failing" / "log.txt").read_text()
    made = json.loads((out / "counting" / "results.json").read_text())
    assert made["environment"]["device"]
    assert made["environment"]["versions"]["torch"]
    assert made["environment"]["date"]
    assert made["environment"]["commit"]
    # Nothing is repeated, a failure not unless it is asked for.
    assert call() == 0
    assert (work / "last.txt").read_text() == "x"
    assert ledger(out)["stages"]["failing"]["calls"] == 1
    assert call("--retry") == 1
    assert ledger(out)["stages"]["failing"]["calls"] == 2
    assert len(ledger(out)["calls"]) == 3


def test_a_stage_that_runs_out_of_time_goes_on_in_the_next_call(small):
    call, work, out = small
    assert call(seconds="8", iterations="120") == 1
    assert statuses(out) == {"failing": "failed", "counting": "stopped", "last": "left"}
    assert ledger(out)["next"] == {"counting": 0, "last": 1}
    reached = int((work / "counting" / "count.txt").read_text())
    assert 0 < reached < 120
    assert not (out / "counting" / "results.json").exists()
    assert call(iterations=str(reached + 3)) == 0
    assert statuses(out)["counting"] == statuses(out)["last"] == "done"
    entry = ledger(out)["stages"]["counting"]
    assert entry["calls"] == 2
    assert entry["seconds"] > 1


def test_a_call_that_was_killed_has_lost_nothing(small):
    call, work, out = small
    call("--only", "failing")
    entry = ledger(work)
    entry["stages"]["counting"] = {"status": "running", "seconds": 3.0, "calls": 1}
    (work / "ledger.json").write_text(json.dumps(entry))
    (work / "counting").mkdir()
    (work / "counting" / "count.txt").write_text("4")
    assert call() == 0
    assert statuses(out)["counting"] == "done"
    assert ledger(out)["stages"]["counting"]["calls"] == 2


def test_a_stage_is_cut_at_its_own_limit_and_what_it_has_is_kept(tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    passing = "def test_first(): pass\n"
    hanging = "import time\ndef test_second(): time.sleep(60)\n"
    (tmp_path / "test_slow.py").write_text(passing + hanging)
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    pytest_ += ["--rootdir", str(tmp_path), "--junitxml", str(work / "slow" / "junit.xml")]
    quick = [sys.executable, "-c", "pass"]

    def stages(args):
        return [
            gpu_window.Stage(
                "slow", 6, [*pytest_, str(tmp_path)], "slow", ("junit.xml",), limit=6.0
            ),
            gpu_window.Stage("last", 1, quick, "last", ()),
        ]

    monkeypatch.setattr(gpu_window, "stages", stages)
    call = [*REHEARSAL, "--work", str(work), "--out", str(out), "--seconds", "120"]
    assert gpu_window.main(call) == 0
    assert statuses(out) == {"slow": "cut", "last": "done"}
    assert gpu_window.read_junit(out / "slow" / "junit.xml")["passed"] == 1
    assert gpu_window.main(call) == 0  # nothing is repeated
    assert ledger(out)["stages"]["slow"]["calls"] == 1
    assert ledger(out)["next"] == {}


def test_stages_that_are_left_out_stay_in_the_ledger(small):
    call, work, out = small
    call("--only", "last")
    assert call("--only", "fail*,counting", "--skip", "failing") == 0
    assert statuses(out) == {"counting": "done", "last": "done"}
    assert (work / "last.txt").read_text() == "x"


def test_a_rehearsal_is_not_taken_for_the_real_thing(small):
    call, work, _ = small
    call("--only", "last")
    entry = ledger(work)
    (work / "ledger.json").write_text(json.dumps(entry | {"quick": False}))
    with pytest.raises(SystemExit, match="quick False, this is one with quick True; give another"):
        call()


def test_without_time_nothing_is_begun(small):
    call, _, out = small
    assert call(seconds="1e-9") == 0
    assert set(statuses(out).values()) == {"left"}


def test_what_cannot_be_brought_back_is_left_out_largest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_window, "ROOM", 1000)
    for name, size in (("a/results.json", 300), ("a/checkpoint.pt", 800), ("zoo-members/b", 600)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    gpu_window.make_room(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"a/results.json", "zoo-members/b"}


def test_what_is_restored_is_runs_members_and_the_ledger(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    args = gpu_window.parser().parse_args(["--work", str(work), "--device", "cpu"])
    args.also, args.dataset, args.where = [], "cifar10", ["--data-dir", "HERE"]
    gpu_window.write_json(out / "cifar10-ipc10" / "config.json", {"ipc": 10, "data_dir": "THERE"})
    (out / "cifar10-ipc10" / "checkpoint.pt").write_text("state")
    for name in ("cifar10-ipc10", "cifar10-ipc50"):  # the second was stopped before it began
        (out / name).mkdir(exist_ok=True)
        (out / name / "log.txt").write_text("log")
    (out / "zoo-members").mkdir()
    (out / "zoo-members" / "abc").write_text("member")
    gpu_window.write_json(out / "ledger.json", {"stages": {}})
    work.mkdir()
    gpu_window.restore(out, args)
    config = json.loads((work / "runs" / "cifar10-ipc10" / "config.json").read_text())
    assert config == {"ipc": 10, "data_dir": "HERE"}
    found = {str(p.relative_to(work)) for p in work.rglob("*") if p.is_file()}
    run = "runs/cifar10-ipc10"
    expected = {f"{run}/config.json", f"{run}/checkpoint.pt", "ledger.json"}
    assert found == {*expected, "cache/ncfd/zoo/abc"}


def test_the_list_is_in_order_of_value(capsys):
    assert gpu_window.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[2] for line in lines[:-1]]
    assert names[:3] == ["cuda-tests", "loss", "pipeline"]
    assert names[3:7] == ["zoo", "cifar10-ipc10", "cifar10-ipc50", "cifar10-ipc1"]
    assert names[7:10] == [f"cifar10-ipc10-{m}" for m in ("dm", "ncfm-fixed", "ncfm")]
    assert names[10] == "cifar10-ipc10-calibration"
    assert all(name.startswith("grid-") for name in names[11:])
    assert len(names) == 11 + len(gpu_window.grid())
    assert int(lines[-1].split()[0]) == sum(int(line.split()[0]) for line in lines[:-1])


@pytest.mark.parametrize("more", [[], ["--quick"]])
def test_every_line_of_the_list_is_a_command_that_is_understood(more, tmp_path):
    """All options pass the checks of what they are given to, and no two runs are the same."""
    from distillation import options

    from benchmarks import run

    own = ["--work", str(tmp_path), "--device", "cpu", *more]
    args = gpu_window.parser().parse_args(own)
    args.also, args.dataset, args.where = [], "cifar10", ["--data-dir", "PATH"]
    configs, suites = [], []
    for stage in gpu_window.stages(args):
        given = stage.command[2:]
        if "examples/distill_cifar.py" in stage.command:
            configs.append(options.configure(options.parser().parse_args(given)).as_dict())
        elif "benchmarks/run.py" in stage.command:
            suites.append(run.parser().parse_args(given).suite)
    assert suites == ["loss", "pipeline"]
    assert len(configs) == 8 + len(gpu_window.grid())
    assert all(config not in configs[:k] for k, config in enumerate(configs))


def test_cifar_is_distilled_by_the_best_rows_of_the_study(tmp_path):
    from studies import questions

    args = gpu_window.parser().parse_args(["--work", str(tmp_path)])
    args.also, args.dataset, args.where = [], "cifar10", ["--data-dir", "PATH"]
    listed = {stage.name: shlex.join(stage.command) for stage in gpu_window.stages(args)}
    study = questions.STUDIES["adversary"]
    best = shlex.join(study.row("mmd, 3").options)
    for name in ("ipc10", "ipc50", "ipc1", "ipc10-calibration"):
        assert f" {best} " in listed[f"cifar10-{name}"]
    # Without the scale, which is the default.
    learned = shlex.join(study.row("one scale on J from 1").options[:-2])
    assert f" {learned} " in listed["cifar10-ipc10-ncfm"]
    assert all(" --loss squared " in listed[name] for name in listed if name.startswith("cifar10"))
    assert study.options == ("--loss", "squared")


def test_cuda_tests_are_found_and_those_that_lack_a_module_are_named(monkeypatch):
    found, left_out = gpu_window.cuda_tests()
    assert "tests/test_ops.py" in found
    assert left_out == {}
    find = gpu_window.importlib.util.find_spec
    monkeypatch.setattr(
        gpu_window.importlib.util, "find_spec", lambda m: None if m == "scipy" else find(m)
    )
    found, left_out = gpu_window.cuda_tests()
    assert "tests/test_ops.py" in found
    assert left_out == {"tests/test_frequencies.py": "scipy"}


def test_missing_modules_are_named_before_anything_is_run(monkeypatch, tmp_path):
    find = gpu_window.importlib.util.find_spec
    gone = ("tqdm", "hypothesis")
    monkeypatch.setattr(
        gpu_window.importlib.util, "find_spec", lambda m: None if m in gone else find(m)
    )
    with pytest.raises(SystemExit, match=r"pip download .* tqdm hypothesis sortedcontainers"):
        gpu_window.main([*REHEARSAL, "--work", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_wheels_are_installed_where_children_find_them(tmp_path):
    wheels, packages = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    for name in ("brought_along", "numpy"):  # NumPy is there: its wheel is left alone
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            about = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}.py", "VALUE = 7\n")
            wheel.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    gpu_window.install(wheels, packages)
    assert (packages / "brought_along.py").exists()
    assert not (packages / "numpy.py").exists()


def tree(root, classes, parts=("train", "test")):
    for part in parts:
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(12):
                Image.new("RGB", (32, 32), (20 * k, 80 * c, 90)).save(folder / f"{k}.png")
    return root


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "no folder train/ in it"),
        (("train",), r"no folder test/ \(or val/\)"),
        (("train", "test"), "classes in one of train and test: warm"),
    ],
)
def test_what_the_data_lack_is_said(parts, said, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    tree(root, ["cold", "warm"], parts)
    if "test" in parts:
        for file in (root / "test" / "warm").iterdir():
            file.unlink()
    with pytest.raises(SystemExit, match=said):
        gpu_window.find_images(root, tmp_path)
    with pytest.raises(SystemExit, match="does not exist"):
        gpu_window.find_images(tmp_path / "nowhere", tmp_path)


def test_an_archive_is_unpacked_once(tmp_path):
    tree(tmp_path / "images", ["cold", "warm"])
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "images", "images")
    root = gpu_window.find_images(archive, tmp_path / "work")
    assert {p.name for p in root.iterdir()} == {"train", "test"}
    (root / "train" / "cold" / "0.png").unlink()  # would come back
    assert gpu_window.find_images(archive, tmp_path / "work") == root
    assert not (root / "train" / "cold" / "0.png").exists()
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(SystemExit, match="cannot be unpacked"):
        gpu_window.find_images(archive, tmp_path / "work")


@pytest.mark.slow  # several minutes: stages of every kind, in processes of their own
def test_stages_of_every_kind_with_interruptions(tmp_path):
    """A kill, then a signal, then a call on another machine that has only `out`."""
    tree(tmp_path / "images", ["cold", "warm"])
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "images", "images")
    out = tmp_path / "out"
    # Of the grid one stage of each player: the others differ by an option only.
    own = [*REHEARSAL, "--data", str(archive), "--out", str(out), "--seconds", "1800"]
    own += ["--skip", "grid-[aFe]*,grid-psi-[dnlus]*,grid-no-psi-*,grid-mmd*,grid-dm"]

    def call(work, *more, end=None, during=None):
        """Run a call; give it a signal while a stage runs. Returns its status."""
        command = [*SCRIPT, *own, "--work", str(tmp_path / work), *more]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            file = tmp_path / work / "ledger.json"
            while end is not None and process.poll() is None:
                time.sleep(0.2)
                if file.exists() and statuses(file.parent).get(during) == "running":
                    time.sleep(1.0)
                    process.send_signal(end)
                    end = None
            return process.wait()

    work = tmp_path / "work"
    assert call("work", end=signal.SIGKILL, during="loss") == -signal.SIGKILL
    assert statuses(work)["loss"] == "running"
    assert call("work", end=signal.SIGTERM, during="cifar10-ipc10") == 0
    before = ledger(work)["stages"]
    assert [before[name]["status"] for name in ("cuda-tests", "loss", "zoo")] == ["done"] * 3
    assert before["cifar10-ipc10"]["status"] == "stopped"
    assert before["cifar10-ipc1"]["status"] == "left"
    assert call("elsewhere", "--restore", str(out)) == 0
    found = ledger(out)["stages"]
    assert {entry["status"] for entry in found.values()} == {"done"}
    for name, entry in found.items():
        folder = out / name
        if before[name]["status"] == "done":  # not repeated
            assert entry["calls"] == before[name]["calls"]
        if name.startswith(("cifar10", "grid", "zoo")):
            results = json.loads((folder / "results.json").read_text())
            assert results["environment"]["commit"]
            assert (folder / "distilled.safetensors").exists()
            assert not (folder / "checkpoint.pt").exists()
    assert json.loads((out / "pipeline" / "pipeline.json").read_text())["finished"]
