"""From runs to a table: means over seeds, and differences between rows of the same seed."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from .questions import Study

#: A run as it is kept: row, seed, accuracy, config, history and so on. See `run.py`.
Record = dict[str, Any]

#: Under this, two rows of one study count as the same in words. It is not a test: with two or
#: three seeds there is none.
DASH = "-"


def of_row(records: Sequence[Record], row: str) -> dict[int, Record]:
    """Return the runs of a row by seed, in order."""
    return {r["seed"]: r for r in sorted(records, key=lambda r: r["seed"]) if r["row"] == row}


def means(records: Sequence[Record], row: str) -> dict[int, float]:
    """Return the accuracy of a row by seed: the mean over its evaluation networks, in percent."""
    return {seed: fmean(r["accuracy"]["runs"]) for seed, r in of_row(records, row).items()}


def differences(records: Sequence[Record], row: str, reference: str) -> dict[int, float]:
    """Return row minus reference for each seed that has both.

    Runs of one seed share the zoo, the start, the real batches and the evaluation networks, so
    what all rows owe to them cancels.
    """
    ours, theirs = means(records, row), means(records, reference)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Write mean ± standard deviation (n - 1); the mean alone of one value, a dash of none."""
    if not values:
        return DASH
    mean = _signed(fmean(values)) if signed else f"{fmean(values):.1f}"
    return f"{mean} ± {stdev(values):.1f}" if len(values) > 1 else mean


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text


def listed(values: Sequence[float], signed: bool = False) -> str:
    """Write one number for each seed."""
    return ", ".join(_signed(v) if signed else f"{v:.1f}" for v in values) or DASH


# --- what became of ψ ----------------------------------------------------------------------------


def last(record: Record, name: str) -> float:
    """Return the last value of a curve, NaN without one."""
    _, values = record["history"].get(name, [[], [math.nan]])
    return float(values[-1])


def floor(record: Record) -> float:
    """Return the |φ| that sampling noise alone gives the synthetic images of a class, 1/√M."""
    config = record["config"]
    return 1 / math.sqrt(config["ipc"] * config["factor"] ** 2)


def _of_all_seeds(record: Callable[[Record], float], digits: str) -> Callable[..., str]:
    def text(records: Sequence[Record], row: str) -> str:
        found = [record(r) for r in of_row(records, row).values()]
        return format(fmean(found), digits) if found and not math.isnan(fmean(found)) else DASH

    return text


#: Columns of a study of the players: means over the seeds, at the end of the runs.
PLAYERS: dict[str, Callable[..., str]] = {
    "mean scale at the end": _of_all_seeds(lambda r: last(r, "scale/mean"), ".2f"),
    "median \\|φ\\|": _of_all_seeds(lambda r: last(r, "phi/median"), ".3f"),
    "noise 1/√M": _of_all_seeds(floor, ".3f"),
    "warnings": _of_all_seeds(lambda r: len(r["warnings"]), ".1f"),
}


# --- pages ---------------------------------------------------------------------------------------


def table(study: Study, records: Sequence[Record]) -> list[list[str]]:
    """Return the cells: a head, and a row for each row of the study that has a run."""
    seeds = sorted({r["seed"] for r in records})
    shown = ", ".join(map(str, seeds))
    s = "s" if len(seeds) != 1 else ""
    extra = PLAYERS if study.players else {}
    head = [
        "row",
        f"accuracy, %: seed{s} {shown}",
        "mean ± std",
        f"minus `{study.reference}`: seed{s} {shown}",
        "mean ± std",
        *extra,
    ]
    cells = [head]
    for row in study.rows:
        values = list(means(records, row.name).values())
        if not values:
            continue
        paired = list(differences(records, row.name, study.reference).values())
        cells.append(
            [
                f"`{row.name}`",
                listed(values),
                spread(values),
                *(
                    ["reference", ""]
                    if row.name == study.reference
                    else [listed(paired, True), spread(paired, True)]
                ),
                *(column(records, row.name) for column in extra.values()),
            ]
        )
    return cells


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Write cells as a table, the first row as its head."""
    head, *rows = cells
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def diagnosis(study: Study, records: Sequence[Record]) -> list[str]:
    """Return what the runs' own diagnosis said, a line for each row and warning."""
    lines = []
    for row in study.rows:
        for seed, record in of_row(records, row.name).items():
            said = record["warnings"] or ["no warnings"]
            lines += [f"- `{row.name}`, seed {seed}: {text}" for text in said]
    return lines


def page(study: Study, records: Sequence[Record], command: str, pictures: Sequence[str]) -> str:
    """Write the page of a study."""
    lines = [f"# {study.name}", "", study.question, "", markdown(table(study, records)), ""]
    networks = sorted({len(r["accuracy"]["runs"]) for r in records})
    lines += [
        "Test accuracy after the last epoch, mean over the evaluation networks of a run "
        f"({', '.join(map(str, networks))}). Differences are taken seed by seed: rows of a seed "
        "share the zoo, the start and the evaluation networks. ± is the standard deviation over "
        "seeds.",
        "",
    ]
    unlike = different_zoos(records)
    if unlike:
        names = ", ".join(map(str, unlike))
        lines += [f"**The rows of seed {names} do not share one zoo: they are not paired.**", ""]
    if study.players:
        lines += ["What the diagnosis of each run said:", "", *diagnosis(study, records), ""]
    lines += [f"![{study.name}]({name})\n" for name in pictures]
    lines += ["```", command, "```", ""]
    return "\n".join(lines)


def different_zoos(records: Sequence[Record]) -> list[int]:
    """Return the seeds whose runs have different zoos, unless they asked for different ones."""
    zoos: dict[tuple[int, ...], set[tuple[float, ...]]] = {}
    for record in records:
        if record["zoo_validation_accuracies"]:  # a method without matching has none
            asked = (record["config"]["zoo_size"], record["config"]["zoo_epochs"])
            found = tuple(record["zoo_validation_accuracies"])
            zoos.setdefault((record["seed"], *asked), set()).add(found)
    return sorted({seed for (seed, *_), found in zoos.items() if len(found) > 1})
