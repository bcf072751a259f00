"""Print the ratios between two result files: `python benchmarks/compare.py BEFORE AFTER`.

Rows belong together if they agree in all that is not a decimal: sizes, names, options. A ratio
below 1 means that AFTER is smaller (faster, leaner, more exact).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import records

#: Whole numbers and words that say how a run went, not what was run.
_OUTCOMES = {"repetitions", "met", "verdict"}


def key(table: str, row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What was measured, without the outcome."""
    parts = [
        (name, value)
        for name, value in row.items()
        if isinstance(value, str | int) and name not in _OUTCOMES
    ]
    return (("table", table), *sorted(parts))


def ratios(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each pair of rows: the key's values, and AFTER / BEFORE of every decimal."""
    known = {key(table, row): row for table, rows in before["tables"].items() for row in rows}
    found = []
    for table, rows in after["tables"].items():
        for row in rows:
            old = known.get(key(table, row))
            if old is None:
                continue
            changes = {
                name: value / old[name]
                for name, value in row.items()
                if isinstance(value, float) and isinstance(old.get(name), float) and old[name]
            }
            if changes:
                label = " ".join(str(v) for k, v in key(table, row) if k != "reason")
                found.append({"row": label, **changes})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(prog="compare.py", description="Ratios between two result files.")
    p.add_argument("before", type=Path)
    p.add_argument("after", type=Path)
    p.add_argument("--only", metavar="TEXT", default="", help="columns whose name contains this")
    args = p.parse_args(arguments)
    files = [records.load(path) for path in (args.before, args.after)]
    for label, content in zip(("before", "after"), files, strict=True):
        env = content["environment"]
        print(f"{label}: {env['device']}, {env['threads']} threads, {env['commit']}, {env['date']}")
    found = ratios(files[0], files[1])
    if not found:
        print("no row in common")
    for row in found:
        changes = ", ".join(
            f"{name} x{value:.3g}"
            for name, value in row.items()
            if name != "row" and args.only in name
        )
        print(f"{row['row']}: {changes}")


if __name__ == "__main__":
    main()
