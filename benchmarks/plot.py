"""Draw the plots of the documentation from result files.

    python benchmarks/plot.py [--results FOLDER] [--output FOLDER]

Every file of suites `scaling`, `precision`, `frequencies` and `adversary` gives one SVG of the
same name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import records

COLOURS = {
    "ncfd": "#1b6ca8",
    "released": "#c0504d",
    "bare products": "#7f7f7f",
    "random": "#c0504d",
    "orthogonal": "#1b6ca8",
    "structured": "#8e6bbf",
    "sobol": "#5a9e4b",
}

Rows = list[dict[str, Any]]


def _curves(rows: Rows, by: str, x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """Points by contender, without those that were not measured or are 0 (log axes)."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row.get(y):
            xs, ys = curves.setdefault(row[by], ([], []))
            xs.append(float(row[x]))
            ys.append(float(row[y]))
    return curves


def _draw(axis: Any, curves: dict[str, tuple[list[float], list[float]]]) -> None:
    for name, (xs, ys) in curves.items():
        axis.plot(xs, ys, "o-", ms=3, lw=1.3, label=name, color=COLOURS.get(name))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()  # hundreds of lines in the file, few in the picture
    axis.grid(alpha=0.3, lw=0.4)


def scaling(content: dict[str, Any]) -> Figure:
    """Time and memory against N, D and F."""
    rows = content["tables"]["scaling"]
    figure = Figure(figsize=(9.5, 5.4))
    axes = figure.subplots(2, 3)
    for column, letter in enumerate("NDF"):
        sweep = [row for row in rows if row["sweep"] == letter]
        fixed = {k: v for k, v in sweep[0].items() if k in "NDF" and k != letter} if sweep else {}
        for axis, what in zip(axes[:, column], ("both_ms", "beyond_mib"), strict=True):
            _draw(axis, _curves(sweep, "contender", letter, what))
        axes[0, column].set_title(", ".join(f"{k} = {v}" for k, v in fixed.items()), fontsize=9)
        axes[1, column].set_xlabel("N = M" if letter == "N" else letter)
    axes[0, 0].set_ylabel("forward and backward, ms")
    axes[1, 0].set_ylabel("memory beyond\ninputs and gradients, MiB")
    axes[0, 0].legend(fontsize=8)
    return figure


def precision(content: dict[str, Any]) -> Figure:
    """Error against float64 as the phases grow."""
    rows = content["tables"]["error"]
    figure = Figure(figsize=(11, 3.8))
    axes = figure.subplots(1, 3)
    titles = {"phi": "φ, rms error", "loss": "loss, relative", "gradient": "gradient, relative"}
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        _draw(axis, _curves(rows, "way", "phase", what))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("root mean square of the phases, radians")
    axes[1].legend(fontsize=6)
    return figure


def frequencies(content: dict[str, Any]) -> Figure:
    """Error of the loss and of its gradient against the number of frequencies."""
    rows = content["tables"]["error"]
    cases = list(dict.fromkeys((row["D"], row["scale"]) for row in rows))
    figure = Figure(figsize=(2.1 * len(cases), 4.6))
    axes = figure.subplots(2, len(cases), sharex=True, sharey="row", squeeze=False)
    for column, (D, scale) in enumerate(cases):
        some = [row for row in rows if (row["D"], row["scale"]) == (D, scale)]
        for axis, what in zip(axes[:, column], ("loss", "gradient"), strict=True):
            _draw(axis, _curves(some, "method", "F", what))
        axes[0, column].set_title(f"D = {D}, scale {scale}", fontsize=8)
        axes[1, column].set_xlabel("F")
    axes[0, 0].set_ylabel("relative error, loss")
    axes[1, 0].set_ylabel("relative error, gradient")
    axes[0, 0].legend(fontsize=7)
    return figure


def adversary(content: dict[str, Any]) -> Figure:
    """Where ψ ends on nothing, and its error over that of the best fixed scale, by its start."""
    nothing, judged = content["tables"]["nothing"], content["tables"]["judged"]
    figure = Figure(figsize=(9.5, 3.8))
    left, right = figure.subplots(1, 2)
    players = [
        (way, marker, name, colour)
        for way, marker in (("mixture", "o"), ("one scale", "^"))
        for name, colour in (("loss", COLOURS["released"]), ("signal", COLOURS["ncfd"]))
    ]
    for k, (way, marker, name, colour) in enumerate(players):
        rows = [r for r in nothing if (r["frequencies"], r["adversary"]) == (way, name)]
        before = [row["before"] * 1.05 ** (k - 1.5) for row in rows]  # beside each other
        after = [row["after"] for row in rows]
        label = f"{way} on the {name}"
        left.plot(before, after, marker, ms=3, alpha=0.6, color=colour, label=label)
    ends = [min(row["before"] for row in nothing), max(row["before"] for row in nothing)]
    left.plot(ends, ends, "-", lw=0.8, color=COLOURS["bare products"], label="unmoved")
    left.set_xlabel("phase at the start, radians: root mean square")
    left.set_ylabel("after the steps")
    ways = list(dict.fromkeys(row["frequencies"] for row in judged))
    for way in ways:
        points = [
            (float(key.removeprefix("from ")) * 1.06 ** (ways.index(way) - len(ways) / 2), value)
            for row in judged
            if row["frequencies"] == way
            for key, value in row.items()
            if key.startswith("from ")
        ]
        right.plot(*zip(*points, strict=True), "o", ms=2.5, alpha=0.7, label=way)
    right.axhline(1, lw=0.8, color=COLOURS["bare products"])
    right.set_xlabel("scale at the start")
    right.set_ylabel("error over that of the best fixed scale")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.grid(alpha=0.3, lw=0.4)
        axis.legend(fontsize=6)
    return figure


PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "scaling": scaling,
    "precision": precision,
    "frequencies": frequencies,
    "adversary": adversary,
}


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Run the command line; return the files written."""
    folder = Path(__file__).resolve().parent / "results"
    p = argparse.ArgumentParser(prog="plot.py", description="Plots of result files.")
    p.add_argument("--results", type=Path, default=folder)
    p.add_argument("--output", type=Path, default=folder)
    args = p.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted(args.results.glob("*.json")):
        content = records.load(file)
        # Not every result is a suite's: some are lists of runs.
        draw = PLOTS.get(content.get("suite", "")) if isinstance(content, dict) else None
        if draw is None or not content["tables"]:
            continue
        figure = draw(content)
        env = content["environment"]
        where = f"{env['device']}, {env['threads']} threads, {env['commit']}, {env['date']}"
        figure.suptitle(where, fontsize=8, color="#555555")
        figure.tight_layout()
        target = args.output / f"{file.stem}.svg"
        with matplotlib.rc_context(
            {"svg.hashsalt": "ncfd", "svg.fonttype": "none"}
        ):  # the same file for the same figures
            figure.savefig(target, metadata={"Date": None})
        written.append(target)
        print(target)
    return written


if __name__ == "__main__":
    main()
