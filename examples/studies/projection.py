"""Memory and time of one iteration by the number of classes, and what follows for ImageNet-1K.

Both are straight lines in the number of classes, as long as all of them are handled together: each
has as many real and as many synthetic images. So a few small class counts are measured, and the
line is drawn on. The images are noise; time and memory do not depend on what they show.

What a process shares with no other is its classes. Every one of them holds all stored images and
their optimizer's state, which therefore do not shrink with the number of processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from distillation import checkpoint
from PIL import Image

from . import runner, tables

CLASSES, IMAGES = 1000, 1_281_167  # of ImageNet-1K, its training part
PROCESSES = (1, 8, 64)
ITERATIONS = 20_000  # of the paper's recipe

#: Class counts that are measured, and the iterations of the short and of the long run. Their
#: difference has no start, no zoo and no evaluation in it.
COUNTS, SHORT, LONG = (2, 5, 10), 1, 5
QUICK_COUNTS = (2, 3)

#: Of every run.
PROTOCOL = (
    *("--dataset", "imagefolder", "--method", "ncfm", "--ipc", "10", "--image-size", "64"),
    *("--width", "32", "--batch-real", "64", "--num-frequencies", "1024"),
    *("--zoo-size", "1", "--zoo-epochs", "1", "--eval-epochs", "1", "--eval-runs", "1"),
    *("--no-baselines", "--no-cache"),
)
QUICK = (*PROTOCOL, "--image-size", "16", "--width", "8", "--batch-real", "8", "--ipc", "4")

#: Copies of the stored images in every process: two sets to begin with, the images, their
#: gradient, and Adam's two moments. As `distillation/chunks.py` counts them.
COPIES = 6


def noise_tree(folder: Path, classes: int, images: int, side: int) -> Path:
    """Write an image folder of noise, unless it is there."""
    root = folder / f"noise-{classes}x{images}-{side}"
    if (root / "complete").exists():
        return root
    rng = np.random.default_rng(classes)
    for part, count in (("train", images), ("test", 4)):
        for c in range(classes):
            inner = root / part / f"class{c:03d}"
            inner.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(inner / f"{k:04d}.png")
    (root / "complete").touch()
    return root


def measure(run: runner.Run) -> dict[str, float]:
    """Make a run and return its processor seconds and peak memory; once, then from its folder."""
    file = run.folder / "measured.json"
    if not file.exists():
        # Only a whole run is a measurement: an interrupted one is started again.
        before = os.times()
        arguments = [*run.arguments, "--output-dir", str(run.folder), "--overwrite"]
        subprocess.run([sys.executable, str(runner.PROGRAM), *arguments], check=True)
        after = os.times()
        seconds = after.children_user + after.children_system
        seconds -= before.children_user + before.children_system
        found = {"seconds": seconds, "peak_bytes": run.results()["peak_memory_bytes"]}
        checkpoint.write_bytes(file, json.dumps(found).encode())
    measured: dict[str, float] = json.loads(file.read_text())
    return measured


def study(output: Path, seed: int, passed: list[str], *, quick: bool) -> dict[str, Any]:
    """Measure, fit and project. Returns the content of the study's JSON file."""
    protocol = [*(QUICK if quick else PROTOCOL), *passed, "--seed", str(seed)]
    rows = []
    for classes in QUICK_COUNTS if quick else COUNTS:
        probe = runner.plan([*protocol, "--data-dir", str(output)], output).config
        # Some of each class are held out for validation: enough are left for a batch.
        images = 2 * probe["batch_real"]
        tree = noise_tree(output, classes, images, probe["image_size"])
        pair = []
        for iterations in (SHORT, LONG):
            arguments = [*protocol, "--data-dir", str(tree), "--iterations", str(iterations)]
            pair.append(measure(runner.plan(arguments, output)))
        rows.append(
            {
                "classes": classes,
                "seconds": (pair[1]["seconds"] - pair[0]["seconds"]) / (LONG - SHORT),
                "peak_bytes": pair[1]["peak_bytes"],
            }
        )
    config = runner.plan([*protocol, "--data-dir", str(tree)], output).config
    return {
        "study": "projection",
        "protocol": protocol,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "config": config,
        "measured": rows,
        "fit": fit(rows, config["ipc"] * 4 * 3 * config["image_size"] ** 2 * COPIES),
    }


def fit(rows: list[dict[str, Any]], replicated: float) -> dict[str, float]:
    """Fit straight lines through time and memory by least squares.

    Args:
        rows: `classes`, `seconds`, `peak_bytes`, for at least two class counts.
        replicated: bytes for each class that every process holds, whoever handles the class.
    """
    classes = [row["classes"] for row in rows]
    found: dict[str, float] = {"replicated_bytes": float(replicated)}
    for name in ("seconds", "peak_bytes"):
        slope, fixed = np.polyfit(classes, [row[name] for row in rows], 1)
        found |= {f"{name}_per_class": float(slope), f"{name}_fixed": float(fixed)}
    return found


def seconds(fitted: dict[str, float], classes: float, processes: int) -> float:
    """Processor seconds of one iteration in each process."""
    share = classes / processes
    return fitted["seconds_fixed"] + fitted["seconds_per_class"] * share


def gigabytes(fitted: dict[str, float], classes: float, processes: int) -> float:
    """Peak memory of each process, without the data set itself."""
    share = classes / processes
    replicated = fitted["replicated_bytes"]
    own = (fitted["peak_bytes_per_class"] - replicated) * share
    return (fitted["peak_bytes_fixed"] + own + replicated * classes) / 1e9


def table(content: dict[str, Any]) -> list[list[str]]:
    """Return the cells: what was measured, then what is projected."""
    cells = [["classes", "processes", "processor s / iteration", "peak memory, GB", ""]]
    cells += [
        [str(r["classes"]), "1", f"{r['seconds']:.2f}", f"{r['peak_bytes'] / 1e9:.2f}", "measured"]
        for r in content["measured"]
    ]
    for processes in PROCESSES:
        time = seconds(content["fit"], CLASSES, processes)
        memory = gigabytes(content["fit"], CLASSES, processes)
        cells.append(
            [str(CLASSES), str(processes), f"{time:.2f}", f"{memory:.2f}", "projected, each"]
        )
    return cells


def page(content: dict[str, Any], question: str, command: str, pictures: list[str]) -> str:
    """Write the page of the study."""
    config, fitted = content["config"], content["fit"]
    days = seconds(fitted, CLASSES, 1) * ITERATIONS / 86_400
    lines = [
        *("# projection", "", question, "", tables.markdown(table(content)), ""),
        f"Images of {config['image_size']} pixels, width {config['width']}, "
        f"{config['batch_real']} real and {config['ipc'] * config['factor'] ** 2} decoded images "
        f"of each class, {config['num_frequencies']} frequencies. Least squares: "
        f"{1000 * fitted['seconds_per_class']:.0f} ms and "
        f"{fitted['peak_bytes_per_class'] / 1e6:.1f} MB for each class. "
        f"{ITERATIONS} iterations of one process: {days:.0f} days.",
        "",
        "Assumed: time and memory go on as straight lines. The real images are not in the memory "
        f"beyond {2 * config['batch_real']} of each class: all {IMAGES} are "
        f"{3 * IMAGES * config['image_size'] ** 2 / 1e9:.1f} GB at one byte a value, in a memory "
        "map. What travels between processes is not in the time; a look at the players in every "
        "iteration is, which a long run takes in each hundredth only. "
        f"{COPIES} copies of the stored images "
        f"({fitted['replicated_bytes'] / 1e6:.2f} MB for each class) are held by every process.",
        "",
    ]
    lines += [f"![projection]({name})\n" for name in pictures]
    lines += ["```", command, "```", ""]
    return "\n".join(lines)
