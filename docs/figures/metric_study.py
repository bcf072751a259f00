"""NCFD, FID and KID as the images get worse: from the benchmark's result file, nothing computed."""

import json

from _figure import ROOT, plt, save

FILE = ROOT / "benchmarks" / "results" / "metric-cpu-amd-epyc.json"
METRICS = {"NCFD, squared, unbiased": "a", "NCFD": "c", "FID": "b", "KID": "d"}
DAMAGES = {
    "noise": "noise, standard deviation",
    "blur": "blur, pixels",
    "missing classes": "missing classes of 10",
    "repeated images": "copies of each image",
    "normal features": "share of rows made normal",
}


def main() -> None:
    """Deviations from the undamaged splits by strength, and the mean of those splits by size."""
    tables = json.loads(FILE.read_text(encoding="utf-8"))["tables"]

    def draw(colours: dict[str, str]):
        figure, grid = plt.subplots(2, 3, figsize=(7.4, 4.6))
        axes = dict(zip([*DAMAGES, "null"], grid.flat, strict=True))
        for metric, key in METRICS.items():
            style = {"color": colours[key], "label": metric, "ms": 3.2, "lw": 1.3}
            for damage, label in DAMAGES.items():
                rows = [
                    row
                    for row in tables["sensitivity"]
                    if (row["damage"], row["metric"]) == (damage, metric)
                ]
                strengths = [float(row["strength"]) for row in rows]
                axes[damage].plot(strengths, [row["deviations"] for row in rows], "o-", **style)
                axes[damage].set_xlabel(label)
            rows = [row for row in tables["null"] if row["metric"] == metric]
            means = [row["value"] / row["sd"] for row in rows]
            axes["null"].plot([row["n"] for row in rows], means, "o-", **style)
        for damage in DAMAGES:
            # Where the differences are: up to where everyone sees the damage.
            top = axes[damage].get_ylim()[1]
            axes[damage].set_ylim(-0.05 * min(top, 20), min(top, 20))
        axes["repeated images"].set_xscale("log", base=2)
        ticks = [1, 2, 4, 8, 16, 32]
        axes["repeated images"].set_xticks(ticks, [str(n) for n in ticks])
        axes["null"].set_xscale("log")
        axes["null"].set_xticks([25, 100, 400], ["25", "100", "400"])
        axes["null"].minorticks_off()
        axes["null"].set(xlabel="images, none damaged", ylabel="mean / standard dev.")
        for axis in grid[:, 0]:
            axis.set_ylabel("standard deviations\nabove undamaged")
        handles, labels = axes["null"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=4, fontsize=8.5)
        figure.tight_layout(rect=(0, 0, 1, 0.93), w_pad=1.2)
        return figure

    save("metric_study", draw)


if __name__ == "__main__":
    main()
