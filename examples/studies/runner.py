"""Runs of `distill_cifar.py`, each in a process and a folder of its own, none of them twice."""

import dataclasses
import hashlib
import itertools
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation import checkpoint, options, report

PROGRAM = Path(__file__).parents[1] / "distill_cifar.py"

#: What of a run's history is kept with a study.
KEPT = ("loss/matching", "probe/", "scale/", "signal/", "phi/")

#: Points of a curve that are kept; a plot shows no more.
POINTS = 40


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal, and so is the study."""


@dataclass(frozen=True)
class Run:
    """The options of a run, and the folder that belongs to them.

    Equal options are the same run, in whichever study they stand: it is made once.
    """

    arguments: tuple[str, ...]
    config: dict[str, Any]
    folder: Path

    @property
    def command(self) -> str:
        shown = [*self.arguments, "--output-dir", str(self.folder)]
        return f"python examples/distill_cifar.py {shlex.join(shown)}"

    def finished(self) -> bool:
        """Whether its results are there. Raises ValueError if they are those of other options."""
        if not (self.folder / "results.json").exists():
            return False
        stored = json.loads((self.folder / "config.json").read_text())
        if telling(stored) != telling(self.config):
            raise ValueError(
                f"{self.folder} holds a run with other options than its name says; move it away"
            )
        return True

    def started(self) -> bool:
        return (self.folder / "config.json").exists()

    def make(self) -> int:
        """Run it, or go on with it. Returns the exit status, 0 if all is well.

        Ctrl-C reaches the run by itself, SIGTERM is passed on; it saves before it ends.

        Raises:
            Interrupted: a signal ended the run.
        """
        arguments = [*self.arguments, "--output-dir", str(self.folder)]
        arguments += ["--resume"] * self.started()
        with subprocess.Popen([sys.executable, str(PROGRAM), *arguments]) as process:

            def pass_on(number: int, _: object) -> None:
                process.send_signal(number)

            before = signal.signal(signal.SIGTERM, pass_on)
            try:
                while True:
                    try:
                        status = process.wait()
                        break
                    except KeyboardInterrupt:
                        continue  # the run has received it too, and is saving
            finally:
                signal.signal(signal.SIGTERM, before)
        stopped = (signal.SIGINT, signal.SIGTERM)
        if status in [128 + n for n in stopped] or status < 0:
            raise Interrupted(f"stopped in {self.folder}; the same command goes on from there")
        return status

    def results(self) -> dict[str, Any]:
        """Return what is in its `results.json`."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return found

    def history(self) -> dict[str, list[list[float]]]:
        """Return the curves [iterations, values] of its checkpoint, thinned out; maybe none."""
        state, _ = checkpoint.Checkpoints(self.folder / "checkpoint.pt").load()
        series = state["history"] if state is not None else {}
        return {
            name: thinned(steps, values)
            for name, (steps, values) in series.items()
            if name.startswith(KEPT)
        }

    def distilled(self) -> Any:
        """Return stored images (N, channels, H, W) in [0, 1], labels, and the metadata."""
        return report.read_distilled(self.folder / "distilled.safetensors")


def plan(arguments: Sequence[str], output: Path) -> Run:
    """Resolve the options of a run and name its folder under `output` by them.

    Raises:
        ValueError: an option has a value that `distill_cifar.py` refuses.
    """
    args = options.parser().parse_args(list(arguments))
    for name in ("output_dir", "resume", "overwrite"):
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is the study's to choose; leave it out")
    config = options.configure(args).as_dict()
    described = json.dumps([sorted(telling(config).items()), str(args.zoo or "")])
    digest = hashlib.sha256(described.encode()).hexdigest()[:10]
    name = f"{config['method']}-seed{config['seed']}-{digest}"
    return Run(tuple(arguments), config, output / "runs" / name)


def telling(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what has its default value: an option added later then changes no name."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(options.Config)
        if field.default is not dataclasses.MISSING
    }
    return {k: v for k, v in config.items() if k not in defaults or v != defaults[k]}


def thinned(steps: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    """Return at most POINTS points: means over equal stretches of the curve, to five digits."""
    count = len(values)
    cuts = [count * k // min(POINTS, count) for k in range(min(POINTS, count) + 1)] if count else []
    stretches = list(itertools.pairwise(cuts))
    return [
        [float(steps[(a + b - 1) // 2]) for a, b in stretches],
        [float(f"{sum(values[a:b]) / (b - a):.5g}") for a, b in stretches],
    ]
