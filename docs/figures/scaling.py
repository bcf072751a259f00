"""Time and memory as one size grows: from the benchmark's result file, nothing computed."""

import json

from _figure import ROOT, plt, save

FILE = ROOT / "benchmarks" / "results" / "scaling-cpu-amd-epyc.json"
CONTENDERS = {"ncfd": ("a", "ncfd_loss"), "released": ("b", "released form")}
CONTENDERS["bare products"] = ("faint", "bare products")
PANELS = {
    "both_ms": "forward and backward, ms",
    "beyond_mib": "memory beyond inputs\nand gradients, MiB",
}


def main() -> None:
    """A column for each size that grows, times above and memory below, on logarithmic axes."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["tables"]["scaling"]

    def draw(colours: dict[str, str]):
        figure, grid = plt.subplots(2, 3, figsize=(7.4, 4.6), sharey="row")
        for column, letter in enumerate("NDF"):
            sweep = [row for row in rows if row["sweep"] == letter]
            for axis, what in zip(grid[:, column], PANELS, strict=True):
                for name, (key, label) in CONTENDERS.items():
                    points = [
                        (r[letter], r[what])
                        for r in sweep
                        if r["contender"] == name and r.get(what)
                    ]
                    if points:
                        style = {"color": colours[key], "ms": 3.2, "lw": 1.3, "label": label}
                        axis.plot(*zip(*points, strict=True), "o-", **style)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
            fixed = {k: sweep[0][k] for k in "NDF" if k != letter}
            grid[0, column].set_title(", ".join(f"{k} = {v}" for k, v in fixed.items()), fontsize=9)
            grid[1, column].set_xlabel("N = M" if letter == "N" else letter)
        for axis, label in zip(grid[:, 0], PANELS.values(), strict=True):
            axis.set_ylabel(label)
        grid[0, 0].legend(fontsize=8)
        figure.tight_layout(w_pad=1.0)
        return figure

    save("scaling", draw)


if __name__ == "__main__":
    main()
