"""One figure for each study, from what is in its JSON file."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from distillation.report import drawable
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from . import projection, tables
from .questions import Study
from .tables import Record

#: Colours by meaning, so that a page can bring its own.
COLOURS = {
    "text": "#24262f",
    "faint": "#9a9da8",
    "a": "#3949ab",
    "b": "#d9772b",
    "c": "#1f8a70",
    "d": "#b23a6b",
}
Colours = dict[str, str]

MARKERS = "osD^v"  # a seed each


def draw(study: Study, records: Sequence[Record], colours: Colours = COLOURS) -> Figure:
    """Draw the accuracies and, for a study of the players, their curves."""
    if study.players:
        return _players(study, records, colours)
    if study.x_label:
        return _over_numbers(study, records, colours)
    present = [row for row in study.rows if tables.means(records, row.name)]
    figure = Figure(figsize=(6.4, 1.2 + 0.34 * len(present)), layout="constrained")
    _dots(figure.add_subplot(), study, records, colours)
    return figure


def _over_numbers(study: Study, records: Sequence[Record], colours: Colours) -> Figure:
    """Accuracy over `Row.x`: a point for each seed and row, and the line of their means."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    lines = list(dict.fromkeys(row.line for row in study.rows))
    for k, (line, key) in enumerate(zip(lines, "abcd", strict=False)):
        rows = [r for r in study.rows if r.line == line and tables.means(records, r.name)]
        if not rows:
            continue
        x = [float(row.x) for row in rows if row.x is not None]
        shift = 1 + 0.03 * k if study.x_log else 1.0  # or error bars of two lines would overlap
        for row, where in zip(rows, x, strict=True):
            for marker, record in zip(MARKERS, _seeds(records, row.name), strict=False):
                _point(axes, where * shift, record, colours[key], marker)
        middle = [fmean(tables.means(records, row.name).values()) for row in rows]
        axes.plot([v * shift for v in x], middle, color=colours[key], lw=1.4, label=line or None)
    if study.x_log:
        ticks = sorted({row.x for row in study.rows if row.x is not None})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=study.x_label, ylabel="test accuracy, %")
    axes.grid(alpha=0.25)
    _key(axes, records, colours, named=len(lines) > 1)
    return figure


def _seeds(records: Sequence[Record], row: str) -> list[Record]:
    return list(tables.of_row(records, row).values())


def _point(
    axes: Axes, x: float, record: Record, colour: str, marker: str, across: bool = False
) -> None:
    """One run: the mean of its networks, with a bar from the lowest to the highest of them."""
    values = record["accuracy"]["runs"]
    mean = fmean(values)
    bar = [[mean - min(values)], [max(values) - mean]]
    style: dict[str, Any] = {"fmt": marker, "color": colour, "ms": 5, "lw": 1.0, "capsize": 2}
    if across:
        axes.errorbar(mean, x, xerr=bar, **style)
    else:
        axes.errorbar(x, mean, yerr=bar, **style)


def _key(axes: Axes, records: Sequence[Record], colours: Colours, named: bool) -> None:
    """Say which marker is which seed, and what the bars are, where there is more than one."""
    seeds = sorted({r["seed"] for r in records})
    networks = max(len(r["accuracy"]["runs"]) for r in records)
    if not named and len(seeds) == networks == 1:
        return
    for marker, seed in zip(MARKERS, seeds, strict=False):
        axes.plot([], [], marker, color=colours["faint"], ms=5, label=f"seed {seed}")
    title = "bars: networks of a run" if networks > 1 else None
    # Dots leave no room inside when there are few rows.
    where = {} if named else {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}
    columns = 2 if named else len(seeds)
    axes.legend(fontsize=8, ncols=columns, title=title, title_fontsize=8, **where)


def _dots(axes: Axes, study: Study, records: Sequence[Record], colours: Colours) -> None:
    """Accuracy by name, a line of the plot for each row."""
    rows = [row for row in study.rows if tables.means(records, row.name)]
    for k, row in enumerate(rows):
        reference = row.name == study.reference
        colour = colours["b" if reference else "a"]
        for marker, record in zip(MARKERS, _seeds(records, row.name), strict=False):
            _point(axes, k, record, colour, marker, across=True)
        axes.plot(
            fmean(tables.means(records, row.name).values()),
            k,
            "|",
            color=colour,
            ms=14,
            mew=1.4,
        )
        if reference:
            middle = fmean(tables.means(records, row.name).values())
            axes.axvline(middle, color=colour, lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, %")
    axes.grid(alpha=0.25)
    _key(axes, records, colours, named=False)


#: Curves of a study of the players, and what the axis says.
CURVES = {
    "scale/mean": "mean scale of the frequencies\n(features have length 1)",
    "phi/median": "median |φ| of real images\nat the frequencies in use",
    "probe/images": "loss of the images now, at\nthe frequencies of the start *",
    "probe/sampler": "loss of the images of the start,\nat the frequencies now *",
    "probe/both": "loss of the images now, at\nthe frequencies now: the game *",
}

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))

#: Losses relative to their first value are shown between these.
LOWEST, HIGHEST = -1.0, 4.0


def _players(study: Study, records: Sequence[Record], colours: Colours) -> Figure:
    """Accuracy, where ψ went, and the loss of each player alone, over the iterations."""
    height = max(6.2, 0.42 * len(study.rows))  # a legible line for each row
    figure = Figure(figsize=(10.5, height), layout="constrained")
    first, *panels = figure.subplots(2, 3).flat
    _dots(first, study, records, colours)
    seed = min(r["seed"] for r in records)
    made = {row.name: tables.of_row(records, row.name).get(seed) for row in study.rows}
    # Of the rows in which no scale moves only the one that the others are set against.
    rows = [row for row in study.rows if row.name == study.reference or _learns(made[row.name])]
    rows = [row for row in rows if made[row.name]]
    handles = {}
    for axes, (name, label) in zip(panels, CURVES.items(), strict=True):
        for row, (colour, style) in zip(rows, _palette(colours, len(rows)), strict=True):
            steps, values = made[row.name]["history"].get(name, [[], []])
            if not values:
                continue
            if name.startswith("probe/"):  # losses of different forms have different units
                values = [v / abs(values[0]) for v in values]
            line = axes.plot(steps, values, color=colour, ls=style, lw=1.3, label=row.name)
            handles[row.name] = line[0]
        axes.set(xlabel="iteration", ylabel=label)
        axes.grid(alpha=0.25)
        if name.startswith("probe/"):
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, LOWEST), min(high, HIGHEST))
        elif name == "scale/mean":
            axes.set_yscale("log")
            plain = LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5))
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_formatter(plain)
        if name == "phi/median":
            floor = tables.floor(records[0])
            axes.set_ylim(bottom=0)
            axes.axhline(floor, color=colours["text"], lw=1, ls=":")
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            axes.annotate("noise, 1/√M", (1, floor), fontsize=7.5, **where)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        title=f"curves of seed {seed}; * relative to the first value",
        title_fontsize=8,
    )
    return figure


def _learns(record: Record | None) -> bool:
    scales = record["history"].get("scale/mean", [[], []])[1] if record else []
    return len({*scales}) > 1


def _palette(colours: Colours, count: int) -> list[tuple[str, Any]]:
    """Colours and dashes, so that every line is another pair."""
    return [(colours["abcd"[k % 4]], DASHES[k // 4 % len(DASHES)]) for k in range(count)]


def grids(named: Sequence[tuple[str, Any, Any]], class_names: Sequence[str]) -> Figure:
    """Draw distilled sets side by side: a line for each, the first image of each class.

    Args:
        named: name, stored images (N, channels, H, W) in [0, 1], labels (N,).
        class_names: by label.
    """
    C = min(10, len(class_names))
    figure = Figure(figsize=(0.75 * C + 0.9, 0.75 * len(named) + 0.35))
    width, height = figure.get_size_inches()
    for r, (name, images, labels) in enumerate(named):
        bottom = 1 - (0.75 * (r + 1) + 0.3) / height
        for c in range(C):
            image = images[labels == c][0].permute(1, 2, 0).clamp(0, 1).numpy()
            left = (0.85 + 0.75 * c) / width
            axes = figure.add_axes((left, bottom, 0.73 / width, 0.73 / height))
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if r == 0:
                name = drawable(class_names[c], c)[:10]
                axes.set_title(name, fontsize=7.5, pad=2, parse_math=False)
        where = (0.8 / width, bottom + 0.365 / height)
        figure.text(*where, name, ha="right", va="center", fontsize=8)
    return figure


def draw_projection(content: dict[str, Any], colours: Colours = COLOURS) -> Figure:
    """Measured points and the straight lines through them, out to the classes of ImageNet-1K."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = content["measured"]
    classes = [row["classes"] for row in measured]
    x = np.geomspace(min(classes), projection.CLASSES, 60)
    for processes, key, style in zip(projection.PROCESSES, "abc", ("-", "--", ":"), strict=True):
        label = "1 process" if processes == 1 else f"{processes} processes"
        what = {"color": colours[key], "ls": style, "lw": 1.4, "label": label}
        seconds = [projection.seconds(content["fit"], v, processes) for v in x]
        left.plot(x, seconds, **what)
        right.plot(x, [projection.gigabytes(content["fit"], v, processes) for v in x], **what)
    points = {"color": colours["text"], "ms": 5, "ls": "", "marker": "o", "label": "measured"}
    left.plot(classes, [row["seconds"] for row in measured], **points)
    right.plot(classes, [row["peak_bytes"] / 1e9 for row in measured], **points)
    left.set(ylabel="processor seconds per iteration and process")
    right.set(ylabel="peak memory of a process, GB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="classes")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure
