"""What the figure scripts share: one look in two colour schemes, and a place for the numbers.

A script computes once, draws the same axes for light and for dark pages, and stores every number
that the guide quotes in ``results/NAME.json``. Run one with ``python docs/figures/NAME.py``, all
with ``for f in docs/figures/[a-z]*.py; do python $f; done``. Each takes seconds on one core.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

mpl.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
FIGURES = ROOT / "docs" / "guide" / "figures"

# One thread: sums in one order, so that the same script gives the same file.
torch.set_num_threads(1)

SCHEMES = {
    "light": {
        "text": "#24262f",
        "faint": "#9a9da8",
        "a": "#3949ab",
        "b": "#d9772b",
        "c": "#1f8a70",
        "d": "#b23a6b",
    },
    "dark": {
        "text": "#d9dbe3",
        "faint": "#6f7380",
        "a": "#93a1ff",
        "b": "#f0a35e",
        "c": "#55c9a6",
        "d": "#ee7fae",
    },
}

Colours = dict[str, str]


def save(name: str, draw: Callable[[Colours], Any]) -> None:
    """Draw for both schemes: ``guide/figures/NAME-light.svg`` and ``NAME-dark.svg``."""
    for scheme, colours in SCHEMES.items():
        text, faint = colours["text"], colours["faint"]
        with mpl.rc_context(
            {
                "axes.edgecolor": faint,
                "axes.grid": False,
                "axes.labelcolor": text,
                "axes.prop_cycle": mpl.cycler(color=[colours[k] for k in "abcd"]),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlesize": 10,
                "font.family": "sans-serif",
                "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
                "font.size": 9.5,
                "legend.frameon": False,
                "savefig.bbox": "tight",
                "savefig.transparent": True,
                "svg.fonttype": "path",  # the same letters on every machine
                "svg.hashsalt": name,
                "text.color": text,
                "xtick.color": faint,
                "xtick.labelcolor": text,
                "ytick.color": faint,
                "ytick.labelcolor": text,
            }
        ):
            figure = draw(colours)
            # No date in the file: it would differ at each run.
            figure.savefig(FIGURES / f"{name}-{scheme}.svg", metadata={"Date": None})
            plt.close(figure)


def record(name: str, **numbers: Any) -> None:
    """Store and print the numbers behind a figure, with what they depend on."""
    content = {
        "command": f"python docs/figures/{name}.py",
        "device": f"cpu, {platform.machine()}, 1 thread",
        "dtype": "float32 unless named",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **numbers,
    }
    text = json.dumps(content, indent=1)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
