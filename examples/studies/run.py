"""Compare whole runs of `distill_cifar.py`: one study, one table, one plot.

    python examples/studies/run.py --list
    python examples/studies/run.py --study alpha --quick
    python examples/studies/run.py --study alpha --seeds 0,1,2 \\
        --dataset imagefolder --data-dir PATH --output-dir runs/studies

A study is a few rows of options (`questions.py`); every row is run for every seed, and compared
with the study's reference row seed by seed. Rows of a seed share the zoo, which is kept in the
cache, the real batches and the evaluation networks.

Everything is written after each run: `NAME.md`, `NAME.svg`, and `NAME.json` with the configuration
and the results of every run. A run that is finished is never made again, in whichever study it
stands; one that was interrupted goes on from its checkpoint. Options after `--` go to every run:

    python examples/studies/run.py --study frequencies --quick -- --scale 1
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `examples`, as for its programs

from distillation import checkpoint, wording
from distillation.options import path

from studies import plots, projection, questions, runner, tables
from studies.questions import STUDIES, Study
from studies.tables import Record

NAMES = (*STUDIES, "projection")

#: Of a run's results, what is kept with a study. The rest is in the run's own folder.
RESULTS = (
    *("accuracy", "timing", "peak_memory_bytes", "device", "versions", "warnings"),
    *("zoo_validation_accuracies", "config"),
)


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12} {question(name)}" for name in NAMES)
    p = argparse.ArgumentParser(
        prog="run.py",
        description=f"Compare whole runs of distill_cifar.py.\n\nStudies:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Options after -- go to every run of distill_cifar.py. What a row is about wins.",
    )
    add = p.add_argument
    add("--list", action="store_true", help="list the studies and their questions")
    add("--study", metavar="NAMES", help="separated by commas, or `all`")
    add("--seeds", default="0", metavar="LIST", help="separated by commas; default: %(default)s")
    add("--dataset", default="digits", help="default: %(default)s")
    add("--data-dir", type=path, metavar="PATH")
    where = "default: runs/studies, with --quick runs/studies-quick"
    add("--output-dir", type=path, metavar="PATH", help=where)
    add("--quick", action="store_true", help="a rehearsal: the same rows, tiny runs")
    add("--rows", metavar="LIST", help="only these rows, separated by semicolons")
    add("--write-only", action="store_true", help="make no run; write what is finished")
    return p


def question(name: str) -> str:
    return questions.PROJECTION if name == "projection" else STUDIES[name].question


def chosen(option: str, text: str, known: Sequence[str], separator: str = ",") -> list[str]:
    """Split a list of names. Raises ValueError naming an unknown one."""
    names = list(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))
    if not names:
        raise ValueError(f"{option} must be among {', '.join(known)}; got {text!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"{option} must be among {', '.join(known)}; got {name!r}")
    return names


def seeds(text: str) -> list[int]:
    """Split a list of seeds. Raises ValueError for anything but whole numbers >= 0."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"--seeds must be whole numbers >= 0, separated by commas, such as 0,1; got {text!r}"
        )
    return list(dict.fromkeys(map(int, parts)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 1 if a run has failed, else 0."""
    wording.print_anything()
    given = list(sys.argv[1:] if arguments is None else arguments)
    ours, passed = given, []
    if "--" in given:
        ours, passed = given[: given.index("--")], given[given.index("--") + 1 :]
    args = parser().parse_args(ours)
    if args.list:
        for name in NAMES:
            print(f"{name:<12} {question(name)}")
        return 0
    if not args.study:
        raise ValueError(f"--study must be among {', '.join(NAMES)}, or all; got none")
    names = list(NAMES) if args.study == "all" else chosen("--study", args.study, NAMES)
    if args.rows and len(names) > 1:
        raise ValueError("--rows needs a single --study")
    wanted = seeds(args.seeds)
    default = Path("runs/studies-quick" if args.quick else "runs/studies")
    output = (args.output_dir or default).resolve()
    output.mkdir(parents=True, exist_ok=True)
    command = f"python examples/studies/run.py {shlex.join(given)}"
    base = ["--dataset", args.dataset]
    if args.data_dir is not None:
        base += ["--data-dir", str(args.data_dir)]
    failed: list[str] = []
    # The first seed of all studies before the second of any: whatever ends it, all have a table.
    for count in range(1, len(wanted) + 1):
        for name in names:
            if name == "projection":
                if args.write_only:
                    print("projection: left out, since it measures (nothing twice)")
                elif count == 1:
                    project(output, wanted[0], passed, command, quick=args.quick)
                continue
            study = STUDIES[name]
            protocol = questions.QUICK if args.quick else study.protocol
            rows = [row.name for row in study.rows]
            if args.rows:
                rows = chosen("--rows", args.rows, rows, ";")
            failed += conduct(
                study,
                {seed: plans(study, seed, [*base, *protocol], passed, output) for seed in wanted},
                rows,
                wanted[count - 1],
                output,
                command,
                write_only=args.write_only,
            )
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def plans(
    study: Study, seed: int, base: list[str], passed: list[str], output: Path
) -> dict[str, runner.Run]:
    """Return the run of every row. Raises ValueError before the first one is made."""
    return {
        row.name: runner.plan(
            [*base, *study.options, *passed, *row.options, "--seed", str(seed)], output
        )
        for row in study.rows
    }


def conduct(
    study: Study,
    planned: dict[int, dict[str, runner.Run]],
    rows: Sequence[str],
    seed: int,
    output: Path,
    command: str,
    *,
    write_only: bool = False,
) -> list[str]:
    """Make the runs of one seed that are not there, and write after each.

    Returns the commands of those that failed.
    """
    failed = []
    require_own(study, planned, output)
    for name in rows:
        run = planned[seed][name]
        if run.finished() or write_only:
            continue
        print(f"study {study.name}, row {name}, seed {seed}: {run.folder}", flush=True)
        if run.make() != 0:
            failed.append(run.command)
        else:
            write(study, planned, output, command)
    found = write(study, planned, output, command)
    wanted = len(planned) * len(study.rows)
    files = f", written to {output / study.name}.md, .svg, .json" * bool(found)
    print(f"study {study.name}: {found} of {wanted} runs are finished{files}")
    return failed


def require_own(study: Study, planned: dict[int, dict[str, runner.Run]], output: Path) -> None:
    """Raise ValueError where the study's files hold runs that would be lost from them.

    Those of a rehearsal, say, or of other seeds: their folders stay, but nobody looks there.
    """
    file = output / f"{study.name}.json"
    if not file.exists():
        return
    for kept in json.loads(file.read_text())["runs"]:
        run = planned.get(kept["seed"], {}).get(kept["row"])
        config = {} if run is None else runner.telling({**run.config, "data_dir": None})
        if config != runner.telling({**kept["config"], "data_dir": None}):
            raise ValueError(
                f"{file} holds a run that this command does not ask for (row {kept['row']}, seed "
                f"{kept['seed']}, other options maybe) and would lose; give another --output-dir, "
                "name all --seeds together, or move the file away"
            )


def record(study: Study, row: str, seed: int, run: runner.Run) -> Record:
    """What a study keeps of a run."""
    results = run.results()
    config = results["config"]
    if config["data_dir"] is not None:  # where it lay says nothing to anybody else
        results["config"] = {**config, "data_dir": Path(config["data_dir"]).name}
    return {
        "row": row,
        "seed": seed,
        "options": list(run.arguments),
        **{name: results[name] for name in RESULTS},
        "history": run.history() if study.players else {},
    }


def write(
    study: Study, planned: dict[int, dict[str, runner.Run]], output: Path, command: str
) -> int:
    """Write the numbers, the table and the plot of all runs that are finished: how many."""
    found = {
        (row.name, seed): run[row.name]
        for seed, run in planned.items()
        for row in study.rows
        if run[row.name].finished()
    }
    if not found:
        return 0
    records = [record(study, row, seed, run) for (row, seed), run in found.items()]
    content = {
        "study": study.name,
        "question": study.question,
        "command": command,
        "reference": study.reference,
        "runs": records,
    }
    save_json(output / f"{study.name}.json", content)
    pictures = [f"{study.name}.svg"]
    plots.draw(study, records).savefig(output / pictures[0], metadata={"Date": None})
    if study.images:
        first = min(seed for _, seed in found)
        named = []
        for row in study.rows:
            if (row.name, first) in found:
                images, labels, about = found[row.name, first].distilled()
                named.append((row.name, images, labels))
        pictures.append(f"{study.name}-images.png")
        plots.grids(named, about["class_names"]).savefig(output / pictures[-1], dpi=110)
    text = tables.page(study, records, command, pictures)
    checkpoint.write_bytes(output / f"{study.name}.md", text.encode())
    return len(found)


def project(output: Path, seed: int, passed: list[str], command: str, *, quick: bool) -> None:
    """Measure and write the projection."""
    content = projection.study(output, seed, passed, quick=quick)
    content |= {"question": questions.PROJECTION, "command": command}
    save_json(output / "projection.json", content)
    figure = plots.draw_projection(content)
    figure.savefig(output / "projection.svg", metadata={"Date": None})
    text = projection.page(content, questions.PROJECTION, command, ["projection.svg"])
    checkpoint.write_bytes(output / "projection.md", text.encode())


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write it so that a person can read it: each list of numbers or words on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    checkpoint.write_bytes(path, (text + "\n").encode())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        print(stopped if isinstance(stopped, runner.Interrupted) else "stopped", file=sys.stderr)
        sys.exit(130)
