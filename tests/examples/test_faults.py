"""Kills, full disks, damaged files, two runs at once, several processes: the state stays whole."""

import errno
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import distill_cifar
import pytest
import torch
from distillation import checkpoint, history, interruption, matching, outputs, report
from distillation.randomness import generator
from test_method import configure, game

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "distill_cifar.py"
TINY = [
    *("--iterations", "20", "--width", "4", "--zoo-size", "2", "--zoo-epochs", "1"),
    *("--batch-real", "12", "--num-frequencies", "48", "--eval-epochs", "2", "--eval-runs", "2"),
    *("--device", "cpu", "--no-baselines"),
]


def command(folder, *arguments):
    return [sys.executable, str(SCRIPT), *TINY, "--output-dir", str(folder), *arguments]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def stored(folder):
    return report.load_distilled(folder / "distilled.safetensors")[0]


# Checkpoints


def state(number):
    return {"iteration": number, "x": torch.arange(500.0) + number, "names": ["a"]}


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    file = tmp_path / "state.pt"
    checkpoint.save(file, state(3))
    content = bytearray(file.read_bytes())
    noticed = 0
    for place in torch.randint(len(content), (150,), generator=generator("places")).tolist():
        broken = bytearray(content)
        broken[place] ^= 16
        file.write_bytes(broken)
        try:
            found = checkpoint.load(file)
        except ValueError as error:
            noticed += f"{file} is damaged" in str(error)
        else:  # padding between the parts, or a copy of what the directory says
            assert torch.equal(found["x"], state(3)["x"])
            assert (found["iteration"], found["names"]) == (3, ["a"])
    assert noticed > 75


def test_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"iteration": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(tmp_path / "state.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path / "checkpoint.pt")
    assert saved.load() == (None, None)
    for number in (1, 2, 3):
        saved.save(state(number))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.previous.pt"}
    saved.path.write_bytes(saved.path.read_bytes()[:-200])

    again = checkpoint.Checkpoints(tmp_path / "checkpoint.pt")
    found, problem = again.load()
    assert found["iteration"] == 2
    assert "checkpoint.pt is damaged" in problem
    assert "going on from checkpoint.previous.pt" in problem
    again.save(state(4))  # in place of the damaged one, not of the good one
    assert checkpoint.load(again.path)["iteration"] == 4
    assert checkpoint.load(again.previous)["iteration"] == 2

    for path in (again.path, again.previous):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*; delete it"):
        checkpoint.Checkpoints(tmp_path / "checkpoint.pt").load()


def test_a_full_disk_leaves_the_last_good_state(digits, tmp_path):
    config = configure("--method", "dm", "--iterations", "20")
    parts = game(config, digits)
    saved = tmp_path / "checkpoint.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = []

    def shrink(*_):  # after the first checkpoint no file may be larger than half of one
        calls.append(1)
        if len(calls) == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (saved.stat().st_size // 2, limits[1]))

    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: shrink() if isinstance(module, matching.Matching) else None
    )
    try:
        with pytest.raises(OSError, match=r"could not write .*; the last good state is in .*pt"):
            distill_cifar.distill(config, digits, *parts, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        hook.remove()
    assert 2 <= checkpoint.load(saved)["iteration"] < 20
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*.new.*"))


def test_a_full_disk_met_by_the_curves_is_said_as_well(digits, tmp_path, monkeypatch):
    config = configure("--method", "dm", "--iterations", "20")
    write = history.SummaryWriter.add_scalar

    def full(self, name, value, iteration):
        if iteration == 13:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, value, iteration)

    monkeypatch.setattr(history.SummaryWriter, "add_scalar", full)
    with pytest.raises(OSError, match=r"No space left on device; the last good state is in"):
        distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 12


def test_images_that_are_not_finite_are_named_and_not_saved(digits, tmp_path, monkeypatch):
    config = configure("--method", "dm", "--iterations", "20")
    step = torch.optim.AdamW.step
    calls = []

    def spoiled(self, closure=None):
        calls.append(1)
        if len(calls) == 6:  # the loss of this iteration was still finite
            with torch.no_grad():
                self.param_groups[0]["params"][0][4:6] = float("nan")  # class 2, two images each
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    with pytest.raises(
        FloatingPointError,
        match=r"iteration 5: the images of class 2 are not finite.*last good state is in",
    ):
        distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 4


# Two runs at once


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    config = configure("--method", "random")
    first = {"resume": True, "overwrite": False}
    with outputs.claimed(tmp_path / "run", config, **first) as folder:
        with (
            pytest.raises(ValueError, match=r"another run is writing to .*run"),
            outputs.claimed(tmp_path / "run", config, resume=False, overwrite=True),
        ):
            pass
        assert (folder / "config.json").exists()
    with outputs.claimed(tmp_path / "run", config, **first):
        pass
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from distillation import outputs\n"
            "with outputs.locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)",
            str(tmp_path / "run"),
        ],
        env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"},
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(ValueError, match="another run"), outputs.locked(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with outputs.locked(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path):
    (tmp_path / "file").write_text("")
    claimed = outputs.claimed(
        tmp_path / "file" / "run", configure("--method", "random"), resume=False, overwrite=False
    )
    with pytest.raises(ValueError, match=r"--output-dir .*run cannot be made \(Not a dir"), claimed:
        pass


# Signals


def distilled_with_a_stop(number, config, digits, folder):
    """A run that gets a signal in its fourth iteration, and goes on."""
    folder.mkdir()
    with interruption.catching() as stop:
        calls = []

        def interrupt(module, *_):
            if isinstance(module, matching.Matching) and torch.is_grad_enabled():
                calls.append(1)
                if len(calls) == 4:
                    os.kill(os.getpid(), number)

        hook = torch.nn.modules.module.register_module_forward_hook(interrupt)
        with pytest.raises(interruption.Stopped, match=r"iteration 4 is saved.*--resume") as caught:
            distill_cifar.distill(config, digits, *game(config, digits), folder, stop)
        hook.remove()
        assert caught.value.number == number
        # Elsewhere there is nothing to wait for.
        with pytest.raises(interruption.Stopped, match="--resume goes on"):
            signal.raise_signal(number)
    assert checkpoint.load(folder / "checkpoint.pt")["iteration"] == 4
    return distill_cifar.distill(config, digits, *game(config, digits), folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(number, digits, tmp_path):
    config = configure("--iterations", "9", "--ipc", "1")
    whole = distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    before = signal.getsignal(number)
    resumed = distilled_with_a_stop(number, config, digits, tmp_path / "stopped")
    assert signal.getsignal(number) == before
    assert torch.equal(resumed.images, whole.images)


@pytest.mark.parametrize(
    "asked",
    [
        "--adversary signal",
        "--adversary signal --sampler normal --spread 0.35 --scale-unit median --max-ratio 30",
        "--adversary signal --sampler diagonal --spread 0.5 --max-ratio 3",
        "--method ncfm-exact --adversary signal --spread 0.35 --scale-unit median",
        "--method ncfm-exact --adversary signal --sampler normal --spread 0.35",
        "--method ncfm-fixed --spread 0.5 --scale-unit median",
        "--method mmd --spread 0.5 --scale-unit median",
    ],
)
def test_the_ways_to_choose_a_scale_go_on_to_the_same_bits(asked, digits, tmp_path):
    config = configure("--iterations", "7", "--ipc", "1", "--layers", "2", *asked.split())
    whole = distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    resumed = distilled_with_a_stop(signal.SIGINT, config, digits, tmp_path / "stopped")
    assert torch.equal(resumed.images, whole.images)
    assert resumed.history.series == whole.history.series


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path):
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), env=environment(), check=True, capture_output=True)
    duration = time.monotonic() - began
    expected = json.loads((tmp_path / "whole" / "results.json").read_text())["accuracy"]
    moments, kills, finished = random.Random(0), 0, 0
    while kills < 20 or not finished:
        folder = tmp_path / f"run{finished}"
        resume = ["--resume"] if (folder / "config.json").exists() else []
        process = subprocess.Popen(
            command(folder, *resume),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Most of the time goes by before the first iteration: kill after that more often.
        wait = moments.uniform(0.3, 1.1) * duration if kills < 20 else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        assert torch.equal(stored(folder), stored(tmp_path / "whole"))
        assert json.loads((folder / "results.json").read_text())["accuracy"] == expected
        finished += 1


# Several processes


SHARED = """
import sys
from pathlib import Path
import torch
import distill_cifar
from distillation import data, processes
from test_method import configure, game
folder = Path(sys.argv[1])
config = configure("--iterations", "2", "--calibration", "--layers", "2")
digits = data.load("digits", None, 16, torch.device("cpu"))
with processes.started("cpu"):
    distilled = distill_cifar.distill(config, digits, *game(config, digits), folder)
    torch.save([distilled.images, distilled.history.series], folder / f"{processes.rank()}.pt")
"""


def test_processes_share_the_classes_of_one_game(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "examples", ROOT / "tests" / "examples")))
    about = {**environment(), "PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1"}
    running = []
    for count, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        folder.mkdir()
        for rank in range(count):
            place = {"WORLD_SIZE": str(count), "RANK": str(rank), "MASTER_PORT": str(port)}
            own = [sys.executable, "-c", SHARED, str(folder)]
            running.append(subprocess.Popen(own, env=about | place, stderr=subprocess.PIPE))
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    one, *two = (
        torch.load(tmp_path / f, weights_only=True) for f in ("one/0.pt", "two/0.pt", "two/1.pt")
    )
    assert torch.equal(two[0][0], two[1][0])
    # Where a gradient is all rounding Adam turns it into a step of either sign.
    gap = (one[0] - two[0][0]).abs()
    assert gap.median() < 1e-6
    assert (gap > 1e-4).float().mean() < 0.01
    for name, (_, values) in one[1].items():
        assert two[0][1][name][1] == pytest.approx(values, rel=1e-3), name
        assert two[1][1][name][1] == two[0][1][name][1], name


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process(tmp_path):
    def run(folder, count, *arguments):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(count)]
        shell = command(folder, "--iterations", "4", "--ipc", "2", "--calibration", *arguments)
        return subprocess.run(
            [*start, *shell[1:]], env=environment(), capture_output=True, text=True
        )

    one, two = tmp_path / "one", tmp_path / "two"
    single = command(one, "--iterations", "4", "--ipc", "2", "--calibration")
    subprocess.run(single, env=environment(), check=True, capture_output=True)
    ended = run(two, 2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to") == 1
    a, b = (checkpoint.load(f / "checkpoint.pt") for f in (one, two))
    assert a["iteration"] == b["iteration"] == 4
    # Where a gradient is all rounding Adam turns it into a step of either sign.
    gap = (a["images"] - b["images"]).abs()
    assert gap.median() < 1e-6
    assert (gap > 1e-4).float().mean() < 0.01
    for name, value in a["criterion"].items():
        torch.testing.assert_close(b["criterion"][name], value, rtol=1e-3, atol=1e-4)
    for name, stream in a["streams"].items():
        assert torch.equal(b["streams"][name], stream), name
    for name in ("loss/matching", "loss/calibration", "gradient/sampler", "probe/sampler"):
        assert b["history"][name][1] == pytest.approx(a["history"][name][1], rel=1e-3), name
    results = [json.loads((f / "results.json").read_text()) for f in (one, two)]
    assert len(results[1]["accuracy"]["runs"]) == 2
    zoos = [torch.load(f / "zoo.pt", weights_only=True) for f in (one, two)]
    assert zoos[0]["accuracies"] == zoos[1]["accuracies"]
    for name, weights in zoos[0]["trained"].items():
        assert torch.equal(zoos[1]["trained"][name], weights)

    # Resuming, and a refusal that process 0 finds.
    (two / "results.json").unlink()
    (two / "checkpoint.pt").unlink()  # so from the previous one
    assert run(two, 2, "--resume").returncode == 0
    again = checkpoint.load(two / "checkpoint.pt")
    assert torch.equal(again["images"], b["images"])
    refused = run(two, 2, "--resume", "--alpha", "0.2")
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run with other options") == 1
