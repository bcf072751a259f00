"""Accuracy of distilled images against iterations at the published width, from the result file."""

import json

from _figure import ROOT, plt, save

FILE = ROOT / "benchmarks" / "results" / "cifar10-width128-cpu.json"
METHODS = {
    "ipc10-mmd-seed0": ("a", "mmd, scale 3"),
    "ipc10-dm-seed0": ("b", "dm: means of features"),
}
START = "ipc10-mix-seed0"


def points(content: dict, name: str) -> list[tuple[int, float]]:
    """Iterations and the accuracy of the first evaluation network, of equal length everywhere."""
    run = content["runs"][name]
    epochs = run["config"]["eval_epochs"]
    on_the_way = [
        (c["iteration"], c["accuracy"]["runs"][0])
        for c in content["checkpoints"]
        if c["run"] == name and c["eval_epochs"] == epochs
    ]
    return sorted([*on_the_way, (run["iterations_done"], run["accuracy"]["runs"][0])])


def main() -> None:
    """One line a method, and where both start."""
    content = json.loads(FILE.read_text(encoding="utf-8"))

    def draw(colours: dict[str, str]):
        figure, axis = plt.subplots(figsize=(5.2, 3.2))
        start = content["runs"][START]["accuracy"]["runs"][0]
        axis.axhline(start, color=colours["faint"], lw=1, ls=":")
        axis.annotate("packed real images, not distilled", (300, start + 0.3), fontsize=8)
        for name, (key, label) in METHODS.items():
            line = points(content, name)
            axis.plot(
                *zip(*line, strict=True), "o-", ms=3.5, lw=1.3, color=colours[key], label=label
            )
        axis.set_xscale("log")
        ticks = [300, 600, 1000, 2000, 3000]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("iterations")
        axis.set_ylabel("test accuracy, %")
        axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.1))
        return figure

    save("convergence", draw)


if __name__ == "__main__":
    main()
