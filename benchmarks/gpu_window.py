"""Use a borrowed accelerator for as long as it is lent: everything worth running, best first.

    python benchmarks/gpu_window.py --data cifar10.tar.gz --wheels wheels --out OUT --seconds 360
    python benchmarks/gpu_window.py --device cpu --quick --out OUT     # a rehearsal, in minutes
    python benchmarks/gpu_window.py --list

Tests, benchmarks, CIFAR-10 from end to end, then an ablation grid. Two calls of `--seconds` fit a
window of fifteen minutes with what starting takes; the second goes on where the first stopped.
State lies in `--work`; figures, distilled tensors and what another machine needs to go on
(`--restore`) are copied to `--out` after every stage. `ledger.json` there says what is done, cut,
stopped, failed and left, and under `next` what another call has still to do.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _folder in (ROOT / "examples", ROOT):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

#: Modules that a stage cannot do without, with the packages they come in. PyTorch's own machine has
#: NumPy, and Pillow with torchvision; SciPy, matplotlib and TensorBoard are done without.
NEEDED = {
    "numpy": ["numpy"],
    "PIL": ["pillow"],
    "tqdm": ["tqdm"],
    "safetensors": ["safetensors"],
    "pytest": ["pytest", "iniconfig", "packaging", "pluggy", "pygments"],
    "pytest_timeout": ["pytest-timeout"],
    "hypothesis": ["hypothesis", "sortedcontainers"],
}
#: Bytes that may lie in `--out`.
ROOM = 60 * 2**20
#: What ends a stage that has no time left: seconds from SIGTERM to the end of the call.
GRACE = 30.0
#: The form of ψ that did best on CPUs: one learned scale, paid for signal.
ONE_SCALE = ["--adversary", "signal", "--sampler", "normal", "--sampler-lr", "2e-2"]
#: What the stage of the tests brings back.
TESTS = ("tests.json",)


@dataclass(frozen=True)
class Stage:
    """One command. It is finished when it ends with status 0."""

    name: str
    seconds: float  # estimated, on an H100
    command: list[str]
    folder: str  # below `--work`: what it writes
    bring: tuple[str, ...]  # patterns in that folder: what to copy
    saves: bool = False  # loses little when it is stopped, so it is begun at any time
    limit: float | None = None  # seconds after which it is cut, for good: what it has is enough
    needs: str | None = None  # a stage that has to be finished before


# ------------------------------------------------------------------------------------------------
# The list
# ------------------------------------------------------------------------------------------------


def stages(args: argparse.Namespace) -> list[Stage]:
    """Return everything worth running, in order of value."""
    python, device = sys.executable, args.device
    found = []
    tests, _ = cuda_tests()
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    pytest += ["--junitxml", str(args.work / "cuda-tests" / "junit.xml")]
    pytest += ["--collect-only"] if device == "cpu" else []
    limits = {} if args.quick else {"cuda-tests": 150, "loss": 90, "pipeline": 60}
    limit = limits.get("cuda-tests")
    found.append(Stage("cuda-tests", 150, [*pytest, *tests], "cuda-tests", TESTS, limit=limit))
    for suite, seconds in (("loss", 90), ("pipeline", 60)):
        command = [python, "benchmarks/run.py", "--suite", suite, "--device", device]
        command += ["--output", str(args.work / suite / f"{suite}.json"), *["--quick"] * args.quick]
        made = ("*.json", "*.md")
        found.append(Stage(suite, seconds, command, suite, made, limit=limits.get(suite)))

    # One form of the loss for all, that of the studies on CPUs: the preset's would be the root for
    # some methods and the square for others.
    paper = ["--preset", "paper", "--loss", "squared", "--no-baselines"]
    sizes = [*paper, "--zoo-size", "5", "--zoo-epochs", "20", "--amp"]
    sizes += ["--iterations", str(args.iterations), "--eval-runs", "3"]
    few = ["--iterations", str(args.iterations // 5)]
    least = ["--iterations", "1", "--eval-epochs", "1", "--eval-runs", "1"]
    fewer_epochs = ["--eval-epochs", "1000"]
    if args.quick:
        sizes = [*paper, "--width", "4", "--zoo-size", "2", "--zoo-epochs", "1"]
        sizes += ["--batch-real", "8", "--num-frequencies", "16", "--iterations", "4"]
        sizes += ["--eval-epochs", "4", "--eval-runs", "2"]
        few, fewer_epochs = ["--iterations", "2", "--eval-runs", "1"], []

    def run(name: str, seconds: float, *options: str, needs: str | None = "zoo") -> None:
        where = ["--dataset", args.dataset, *args.where, "--device", device]
        command = [python, "examples/distill_cifar.py", *where, *sizes, *options, *args.also]
        command += ["--output-dir", str(args.work / "runs" / name), "--resume"]
        kept = ("results.json", "distilled.safetensors", "report.md", "config.json")
        kept += ("checkpoint.pt", "evaluation-*.pt")
        found.append(Stage(name, seconds, command, f"runs/{name}", kept, saves=True, needs=needs))

    # One iteration after all its members are trained: every later run finds them in the cache, and
    # the whole way from images to report has been gone once.
    run("zoo", 120, "--ipc", "1", *least, needs=None)
    # The best recipe that is known from CPUs, then the others under the same zoo.
    best = ["--method", "mmd", "--scale", "3"]
    run("cifar10-ipc10", 240, "--ipc", "10", *best)
    run("cifar10-ipc50", 420, "--ipc", "50", *best, *fewer_epochs)
    run("cifar10-ipc1", 150, "--ipc", "1", *best)
    for method, options in {"dm": [], "ncfm-fixed": [], "ncfm": ONE_SCALE}.items():
        run(f"cifar10-ipc10-{method}", 240, "--ipc", "10", "--method", method, *options)
    # What the published configurations have in every iteration, and the headline has not.
    run("cifar10-ipc10-calibration", 300, "--ipc", "10", *best, "--calibration", "1")
    # The grid, at a fifth of the iterations; `base` is what the others change one thing of.
    for name, options in grid().items():
        run(f"grid-{name}", 60, "--ipc", "10", *few, *options)
    return found


def grid() -> dict[str, list[str]]:
    """Return the options of the ablation grid by name: ψ, α, F, extractor, form of ψ."""
    found = {"base": [], "no-psi": ["--method", "ncfm-fixed"]}
    found["no-psi-scale-3"] = ["--method", "ncfm-fixed", "--scale", "3"]
    found["psi-signal"] = ["--adversary", "signal"]
    found["psi-signal-one-scale"] = ONE_SCALE
    found["psi-scale-3"] = ["--scale", "3"]
    found["exact-scale-3"] = ["--method", "ncfm-exact", "--scale", "3"]
    found["mmd"] = ["--method", "mmd", "--scale", "3"]
    found["mmd-median"] = ["--method", "mmd", "--scale-unit", "median", "--scale", "2"]
    found["dm"] = ["--method", "dm"]
    found |= {f"alpha-{a}": ["--alpha", a] for a in ("0.1", "0.3", "0.7", "0.9")}
    found |= {f"F-{n}": ["--num-frequencies", n] for n in ("64", "256", "4096")}
    found |= {f"extractor-{e}": ["--extractor", e] for e in ("random", "trained")}
    forms = ("diagonal", "normal", "student", "laplace", "uniform", "direct")
    found |= {f"psi-{form}": ["--sampler", form] for form in forms}
    return found


def cuda_tests() -> tuple[list[str], dict[str, str]]:
    """Return the files with tests for CUDA, and those left out with the module they lack."""
    found, left_out = [], {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.cuda" not in text:
            continue
        imported = set()
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
        own = {p.stem for p in path.parent.glob("*.py")}
        lacking = [m for m in sorted(imported - own) if importlib.util.find_spec(m) is None]
        name = str(path.relative_to(ROOT))
        if lacking:
            left_out[name] = ", ".join(lacking)
        else:
            found.append(name)
    return found, left_out


# ------------------------------------------------------------------------------------------------
# Before any time is spent
# ------------------------------------------------------------------------------------------------


def install(wheels: Path, packages: Path) -> None:
    """Install the wheels of a folder, but for what is there already, where children find them."""
    have = {d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()}
    wanted = [
        str(path)
        for path in sorted(wheels.glob("*.whl"))
        if path.name.split("-")[0].lower().replace("_", "-") not in have
    ]
    if not wanted:
        return
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
    done = subprocess.run([*pip, "--target", str(packages), *wanted], check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: --wheels {wheels}: pip ended with status {done.returncode}")


def missing_modules() -> list[str]:
    """Return what is needed and not there."""
    return [module for module in NEEDED if importlib.util.find_spec(module) is None]


def require_modules() -> None:
    """Say at once what is missing, and how to bring it to a machine without a network."""
    missing = missing_modules()
    if missing:
        packages = " ".join(package for module in missing for package in NEEDED[module])
        raise SystemExit(
            f"error: these modules are missing: {', '.join(missing)}. With a network:\n"
            f"    pip install {packages}\n"
            "without one, on a machine with the same Python, and then --wheels wheels here:\n"
            f"    pip download --no-deps -d wheels {packages}"
        )


def find_images(data: Path, work: Path) -> Path:
    """Return the folder with train/<class> and test/<class>; unpack an archive once.

    Raises:
        SystemExit: says what the layout lacks.
    """
    if not data.exists():
        raise SystemExit(f"error: --data {data} does not exist")
    folder = data
    if data.is_file():
        folder, marker = work / "data", work / "data" / ".unpacked"
        content = f"{data.name} {data.stat().st_size}"
        if not (marker.exists() and marker.read_text() == content):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                with tarfile.open(data) as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, OSError, EOFError) as error:
                raise SystemExit(f"error: --data {data} cannot be unpacked ({error})") from None
            marker.write_text(content)
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    roots = [p for p in (folder, *inside) if (p / "train").is_dir()]
    if not roots:
        raise SystemExit(f"error: --data {data}: no folder train/ in it, nor one level below")
    root = roots[0]
    classes = {}
    for part in ("train", "test"):
        if part == "test" and not (root / part).is_dir():
            part = "val"
        if not (root / part).is_dir():
            raise SystemExit(f"error: --data {data}: no folder test/ (or val/) beside train/")
        classes[part] = {p.name for p in (root / part).iterdir() if p.is_dir() and any(p.iterdir())}
        if not classes[part]:
            raise SystemExit(f"error: --data {data}: no class folder with images in {part}/")
    one, other = classes.values()
    if one != other:
        odd = ", ".join(sorted(one ^ other)[:5])
        raise SystemExit(f"error: --data {data}: classes in one of {' and '.join(classes)}: {odd}")
    return root.resolve()


# ------------------------------------------------------------------------------------------------
# The ledger
# ------------------------------------------------------------------------------------------------


class Ledger:
    """What became of every stage. Written after every change, so a kill loses nothing."""

    def __init__(self, file: Path, header: dict[str, Any], listed: list[Stage]) -> None:
        self.file = file
        known = json.loads(file.read_text()) if file.exists() else {}
        for what in ("quick", "device"):
            if known.get(what, header[what]) != header[what]:
                raise SystemExit(
                    f"error: {file.parent} holds a window with {what} {known[what]}, this is one "
                    f"with {what} {header[what]}; give another --work"
                )
        before = known.get("stages", {})
        fresh = {"status": "left", "seconds": 0.0, "calls": 0}
        self.stages = {s.name: before.get(s.name, dict(fresh)) for s in listed}
        self.stages |= {name: e for name, e in before.items() if name not in self.stages}
        for entry in self.stages.values():
            if entry["status"] == "running":  # a call that was killed
                entry["status"] = "stopped"
        self.content = {**header, "calls": known.get("calls", []), "stages": self.stages}

    def update(self, name: str, **values: Any) -> None:
        self.stages[name] |= values
        self.write()

    def write(self) -> None:
        write_json(self.file, self.content)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.stages[name]


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(file)


# ------------------------------------------------------------------------------------------------
# Running
# ------------------------------------------------------------------------------------------------


def _end_with_parent() -> None:
    """In a child: let the system send SIGTERM when the script is killed. Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGTERM)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Window:
    """One call: its clock, its child, and what a signal does."""

    def __init__(self, args: argparse.Namespace, began: float) -> None:
        self.args = args
        # Copying takes time, too; a short rehearsal has less to copy.
        self.grace = min(GRACE, 0.25 * args.seconds)
        self.end = began + args.seconds
        self.whole = args.seconds - self.grace
        self.child: subprocess.Popen[bytes] | None = None
        self.interrupted = False

    def left(self) -> float:
        """Seconds until a stage has to stop."""
        return self.end - self.grace - time.monotonic()

    def needs(self, stage: Stage, entry: dict[str, Any]) -> float:
        """Seconds below which a stage is not worth beginning; a fresh call has enough for any."""
        if stage.saves:
            return 45.0  # to load, and to get somewhere
        if stage.limit is not None:
            return min(stage.limit, 0.8 * self.whole)
        return min(max(stage.seconds, 1.2 * entry.get("longest", 0.0)), 0.8 * self.whole)

    def interrupt(self, *_: object) -> None:
        self.interrupted = True
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, stage: Stage, log: Path) -> str:
        """Run a stage. Returns `done`, `cut` at its limit, `stopped`, or why it failed."""
        log.parent.mkdir(parents=True, exist_ok=True)
        (self.args.work / stage.folder).mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                stage.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.args.env,
                cwd=ROOT,
                preexec_fn=_end_with_parent,
            )
            outcome = None
            room = max(0.0, self.left())
            try:
                self.child.wait(room if stage.limit is None else min(room, stage.limit))
            except subprocess.TimeoutExpired:
                cut = stage.limit is not None and stage.limit <= room
                outcome = "cut" if cut else "stopped"
                # An interrupt lets pytest write what it has found.
                self.child.send_signal(signal.SIGTERM if stage.saves else signal.SIGINT)
                try:
                    self.child.wait(0.6 * self.grace)
                except subprocess.TimeoutExpired:
                    self.child.kill()
                    self.child.wait()
        status = self.child.returncode
        if status == 0:
            return "done"
        if outcome is not None or self.interrupted:
            return outcome or "stopped"
        return f"status {status}: {last_line(log)}"


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")[:300]


def bring(stage: Stage, args: argparse.Namespace, env: dict[str, Any], finished: bool) -> None:
    """Copy what a stage made to `--out`, its figures with the machine beside them."""
    source, target = args.work / stage.folder, args.out / stage.name
    target.mkdir(parents=True, exist_ok=True)
    if stage.name == "cuda-tests" and args.device != "cpu":
        write_json(source / "tests.json", read_junit(source / "junit.xml"))
    resuming = {"checkpoint.pt"} | {p.name for p in source.glob("evaluation-*.pt")}
    for pattern in stage.bring:
        for path in sorted(source.glob(pattern)):
            if finished and path.name in resuming:
                (target / path.name).unlink(missing_ok=True)
            elif path.suffix == ".json" and path.name != "config.json":
                content = json.loads(path.read_text(encoding="utf-8"))
                content.setdefault("environment", env)
                content.setdefault("command", shlex.join(stage.command))
                write_json(target / path.name, content)
            else:
                shutil.copyfile(path, target / path.name)
    log = args.work / "logs" / f"{stage.name}.log"
    if log.exists():
        (target / "log.txt").write_bytes(log.read_bytes()[-(2**15) :])
    # Trained members, each some megabyte: another machine of this kind need not train them.
    cached, members = args.work / "cache" / "ncfd" / "zoo", args.out / "zoo-members"
    if cached.is_dir():
        members.mkdir(exist_ok=True)
        for path in cached.iterdir():
            whole = not path.name.startswith((".", "unfinished"))
            if whole and not (members / path.name).exists():
                shutil.copyfile(path, members / path.name)
    make_room(args.out)


def make_room(out: Path) -> None:
    """Keep `--out` small enough to bring back: leave out what can be made again, largest first."""
    files = [p for p in out.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    expendable = [p for p in files if p.name == "checkpoint.pt" or p.parent.name == "zoo-members"]
    for path in sorted(expendable, key=lambda p: -p.stat().st_size):
        if size <= ROOM:
            break
        size -= path.stat().st_size
        print(f"left out for want of room: {path.relative_to(out)}", flush=True)
        path.unlink()


def read_junit(junit: Path) -> dict[str, Any]:
    """Return what pytest wrote as counts and names."""
    root = ET.parse(junit).getroot() if junit.exists() else ET.Element("testsuites")
    cases = list(root.iter("testcase"))
    # A test that was interrupted is among the cases, and not in the count.
    count = sum(int(suite.get("tests", 0)) for suite in root.iter("testsuite"))

    def names(*kinds: str) -> list[str]:
        found = [c for c in cases if any(c.find(kind) is not None for kind in kinds)]
        return [f"{c.get('classname')}::{c.get('name')}" for c in found]

    failed, skipped = names("failure", "error"), names("skipped")
    return {
        "suite": "cuda-tests",
        "passed": count - len(failed) - len(skipped),
        "failed": failed,
        "skipped": skipped,
        "files_left_out": cuda_tests()[1],
        "seconds": sum(float(c.get("time", 0)) for c in cases),
    }


def restore(source: Path, args: argparse.Namespace) -> None:
    """Put what an earlier window brought back where this one looks for it."""
    for stage in stages(args):
        if (source / stage.name).is_dir():
            # The log is of no use here, and a folder with nothing but a log holds no run.
            own = shutil.ignore_patterns("log.txt")
            target = args.work / stage.folder
            shutil.copytree(source / stage.name, target, ignore=own, dirs_exist_ok=True)
            config = args.work / stage.folder / "config.json"
            if config.exists():  # the images may lie elsewhere here
                content = json.loads(config.read_text(encoding="utf-8"))
                write_json(config, content | {"data_dir": (args.where or ["", None])[1]})
    if (source / "zoo-members").is_dir():
        kept = args.work / "cache" / "ncfd" / "zoo"
        shutil.copytree(source / "zoo-members", kept, dirs_exist_ok=True)
    shutil.copyfile(source / "ledger.json", args.work / "ledger.json")


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="gpu_window.py", description=str(__doc__).splitlines()[0])
    add = p.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--quick", action="store_true", help="tiny sizes: a rehearsal, no result")
    add("--data", type=Path, metavar="PATH", help="train/<class>/* and test/<class>/*: folder, tar")
    add("--wheels", type=Path, metavar="DIR", help="wheels of what the machine lacks")
    add("--work", type=Path, default=Path("window"), metavar="DIR", help="state between calls")
    add("--out", type=Path, metavar="DIR", help="what to bring back (default: WORK/out)")
    add("--restore", type=Path, metavar="DIR", help="--out of a window on another machine")
    add("--seconds", type=float, default=360.0, help="this call ends by itself: %(default)g")
    add("--iterations", type=int, default=5000, help="of each run; the grid's: a fifth")
    add("--only", default="", metavar="LIST", help="stages by name, with * for any text")
    add("--skip", default="", metavar="LIST", help="the same, to leave out")
    add("--retry", action="store_true", help="also what failed before")
    add("--also", default="", metavar="OPTIONS", help="more options for every distillation")
    add("--list", action="store_true", help="print the stages with their seconds, and end")
    return p


def chosen(listed: list[Stage], only: str, skip: str) -> list[Stage]:
    """Return the stages that the two lists of patterns leave."""
    from fnmatch import fnmatch

    def among(name: str, patterns: str) -> bool:
        return any(fnmatch(name, p.strip()) for p in patterns.split(",") if p.strip())

    return [s for s in listed if (not only or among(s.name, only)) and not among(s.name, skip)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one call. Returns 0, or 1 if a stage failed in it."""
    began = time.monotonic()
    args = parser().parse_args(arguments)
    args.work, args.also = args.work.resolve(), shlex.split(args.also)
    args.out = (args.out or args.work / "out").resolve()
    args.dataset, args.where = "cifar10", ["--data-dir", "PATH"]
    if args.list:
        listed = chosen(stages(args), args.only, args.skip)
        for stage in listed:
            print(f"{stage.seconds:6.0f} s  {stage.name}")
        print(f"{sum(s.seconds for s in listed):6.0f} s  in all, estimated for an H100")
        return 0

    packages = args.work / "packages"
    if args.wheels is not None:
        if not args.wheels.is_dir():
            raise SystemExit(f"error: --wheels {args.wheels} is no folder")
        install(args.wheels, packages)
    sys.path.append(str(packages))
    importlib.invalidate_caches()
    require_modules()
    import torch

    from benchmarks import measuring

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; rehearse with --device cpu --quick")
    if args.data is not None:
        args.where = ["--data-dir", str(find_images(args.data, args.work))]
    elif args.quick:
        args.dataset, args.where = "digits", []
    else:
        raise SystemExit("error: --data PATH is needed: the images of CIFAR-10, folder or archive")

    env = measuring.environment(torch.device(args.device))
    if env["commit"] == "unknown":
        print("the commit is not known here: set NCFD_COMMIT", flush=True)
    paths = [str(ROOT), str(ROOT / "examples"), str(packages), os.environ.get("PYTHONPATH", "")]
    args.env = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "XDG_CACHE_HOME": str(args.work / "cache"),
        "NCFD_COMMIT": env["commit"],
    }
    if args.restore is not None and not (args.work / "ledger.json").exists():
        args.work.mkdir(parents=True, exist_ok=True)
        restore(args.restore, args)
    listed = chosen(stages(args), args.only, args.skip)
    window = Window(args, began)
    header = {"quick": args.quick, "device": args.device, "environment": env}
    ledger = Ledger(args.work / "ledger.json", header, listed)
    with window.catching():
        failed = play(window, listed, ledger, env)
    ledger.content["calls"].append(
        {"date": env["date"], "commit": env["commit"], "seconds": time.monotonic() - began}
    )
    remaining = [s for s in listed if ledger[s.name]["status"] in ("left", "stopped")]
    ledger.content["next"] = {
        s.name: round(max(0.0, s.seconds - ledger[s.name]["seconds"])) for s in remaining
    }
    ledger.write()
    shutil.copyfile(ledger.file, args.out / "ledger.json")
    counts = {s: [e["status"] for e in ledger.stages.values()].count(s) for s in STATUSES}
    print(", ".join(f"{n} {status}" for status, n in counts.items()), flush=True)
    if remaining:
        left = ", ".join(f"{n} {s} s" for n, s in ledger.content["next"].items())
        print(f"the next call goes on with: {left}", flush=True)
    return 1 if failed else 0


STATUSES = ("done", "cut", "stopped", "failed", "left")


def play(window: Window, listed: list[Stage], ledger: Ledger, env: dict[str, Any]) -> bool:
    """Run what is left for as long as there is time. Returns whether a stage failed."""
    args, failed = window.args, False
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in listed:
        entry = ledger[stage.name]
        if entry["status"] in ("done", "cut") or (entry["status"] == "failed" and not args.retry):
            continue
        if window.interrupted or window.left() <= 0:
            break
        waiting = stage.needs is not None and stage.needs in ledger.stages
        if waiting and ledger[str(stage.needs)]["status"] in ("left", "stopped"):
            continue
        room = window.left()
        if not args.quick and window.needs(stage, entry) > room:
            print(f"{stage.name}: left, since only {room:.0f} s remain", flush=True)
            continue
        print(f"{stage.name}: {shlex.join(stage.command)}", flush=True)
        started = time.monotonic()
        ledger.update(stage.name, status="running", calls=entry["calls"] + 1)
        outcome = window.run(stage, args.work / "logs" / f"{stage.name}.log")
        seconds = time.monotonic() - started
        if outcome == "stopped" and not stage.saves and not window.interrupted:
            if room > 0.9 * window.whole:
                outcome = f"not finished in a whole call of {args.seconds:g} s"
            entry["longest"] = round(seconds, 1)
        status = outcome if outcome in ("done", "cut", "stopped") else "failed"
        spent = round(entry["seconds"] + seconds, 1)
        ledger.update(stage.name, status=status, seconds=spent)
        if status == "failed":
            failed = True
            ledger.update(stage.name, why=outcome)
        print(f"{stage.name}: {outcome} after {seconds:.0f} s", flush=True)
        bring(stage, args, env, status in ("done", "cut"))
        shutil.copyfile(ledger.file, args.out / "ledger.json")
    return failed


if __name__ == "__main__":
    sys.exit(main())
