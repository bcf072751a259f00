"""A result file: rows in named tables, written again after every row, with Markdown beside it.

A run that is killed keeps what it finished. In a row text and whole numbers say what was measured,
decimals are the measurements (`compare.py` relies on it).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Records:
    """The rows of one run of one suite; with `resume` those that the file holds already stay."""

    def __init__(self, file: Path, header: dict[str, Any], *, resume: bool = False) -> None:
        self.file = file
        self.content: dict[str, Any] = {**header, "finished": False, "tables": {}}
        if resume and file.exists():
            former = load(file)
            if former.get("command") != header.get("command"):
                raise SystemExit(f"{file} is of another command: {former.get('command')}")
            self.content["tables"] = former["tables"]
        file.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, table: str, row: Row) -> None:
        """Append a row, save, and print it."""
        self.content["tables"].setdefault(table, []).append(row)
        self._write()
        print(f"{table}: " + ", ".join(f"{k} {shown(v)}" for k, v in row.items()), flush=True)

    def has(self, table: str, row: Row) -> bool:
        """Whether there is a row of these values already, in a run that goes on."""
        rows = self.content["tables"].get(table, [])
        return any(row.items() <= found.items() for found in rows)

    def finish(self, **header: Any) -> None:
        self.content |= {**header, "finished": True}
        self._write()

    def _write(self) -> None:
        # Replaced, not overwritten: a kill in between leaves the former file whole.
        for path, text in (
            (self.file, json.dumps(self.content, indent=1, ensure_ascii=False)),
            (self.file.with_suffix(".md"), markdown(self.content)),
        ):
            fresh = path.with_name(path.name + ".new")
            fresh.write_text(text + "\n", encoding="utf-8")
            fresh.replace(path)


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def default_file(folder: Path, suite: str, device: str, *, quick: bool) -> Path:
    """`<suite>-<device>.json`; quick runs carry a mark and are not kept in the repository."""
    name = re.sub(r"\((r|tm)\)|\bprocessor\b", " ", device.lower())  # no part of a name
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return folder / f"{suite}-{slug}{'-quick' if quick else ''}.json"


def shown(value: Any) -> str:
    """A value as a reader wants it: three or four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != value:  # NaN
            return "-"
        if value == 0 or 0.01 <= abs(value) < 1e5:
            return f"{value:.4g}"
        return f"{value:.2e}"
    return str(value)


def markdown(content: dict[str, Any]) -> str:
    """The whole file as a page."""
    env = content.get("environment", {})
    lines = [f"# {content.get('suite', 'results')}: {env.get('device', '')}", ""]
    lines += [f"    {content['command']}", ""] if "command" in content else []
    if env:
        versions = ", ".join(f"{k} {v}" for k, v in env.get("versions", {}).items())
        lines += [
            f"{env.get('date')}, commit {env.get('commit')}, {env.get('threads')} threads, "
            f"load {env.get('load_average')} at the start; {versions}.",
            "",
        ]
    if not content.get("finished"):
        lines += ["Not finished: the rows so far.", ""]
    lines += [f"{note}\n" for note in content.get("notes", [])]
    for name, rows in content.get("tables", {}).items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [
            f"## {name}",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + "---|" * len(columns),
            *("| " + " | ".join(shown(row.get(c)) for c in columns) + " |" for row in rows),
            "",
        ]
    return "\n".join(lines).rstrip()
